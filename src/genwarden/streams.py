"""Standard output and error whose reader may go away: ``genwarden ... | head -1``.

A command whose reader has left ends quietly with 141, as a shell expects (128 + SIGPIPE). Left to
the libraries, the status would be 1, which here means "evidence". SIGPIPE itself is left ignored:
pipes to our own children may break without ending the command.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: The reader of standard output or error is gone.
READER_GONE: Final = 141


class _Standard(io.FileIO):
    """A standard stream; the first write that fails is the last that is tried."""

    def write(self, content: ReadableBuffer, /) -> int:
        """As a file, but a reader that is gone ends the command.

        Raises:
            SystemExit: :data:`READER_GONE`; nothing on the way up takes it for an error.
            GenwardenError: ``output/not-writable``, e.g. a full disk behind a redirection.
        """
        try:
            return super().write(content)
        except BrokenPipeError:
            self._give_up()
            raise SystemExit(READER_GONE) from None
        except OSError as error:
            number = self.fileno()
            self._give_up()
            raise GenwardenError(
                "output/not-writable",
                f"Cannot write standard {'output' if number == 1 else 'error'}: "
                f"{error.strerror or error}.",
                "Redirect it to a place with free space, or repeat the command without that.",
            ) from error

    def _give_up(self) -> None:
        # What is still buffered must not fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextmanager
def watched_streams() -> Iterator[None]:
    """Standard output and error as above; what others have put in their place is left alone."""
    sys.stdout, sys.stderr = _watched(sys.stdout, 1), _watched(sys.stderr, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Watched):
                stream.flush()


class _Watched(io.TextIOWrapper):
    """Marks the streams that are ours."""


def _watched(stream: TextIO, number: int) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Watched):
        return stream  # closed, or a test's
    try:
        if stream.fileno() != number:
            return stream
    except OSError:  # held in memory
        return stream
    stream.flush()
    return _Watched(
        io.BufferedWriter(_Standard(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or number == 2,
        write_through=stream.write_through,
    )
