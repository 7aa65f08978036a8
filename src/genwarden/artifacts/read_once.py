"""Opening an untrusted file exactly once: what is hashed is what is parsed (R-6)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from genwarden.artifacts.limits import MAX_FILE_BYTES
from genwarden.errors import GenwardenError


def read_once(path: Path, *, limit_bytes: int = MAX_FILE_BYTES, member: bool = False) -> bytes:
    """The whole content of a regular file.

    Args:
        path: the file.
        limit_bytes: a larger file is refused before a byte of it is read.
        member: the file belongs to a folder that somebody else made. Then it must be a plain file
            with one name: a symbolic or hard link there could lead out of the folder. A link that
            the user names on the command line is followed.

    Raises:
        GenwardenError: ``artifact/not-found``, ``artifact/link``, ``artifact/not-a-file``,
            ``artifact/too-large``, ``artifact/unreadable``, ``artifact/empty``.
    """
    if member and path.is_symlink():
        raise _link(path, "a symbolic link")
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer. O_NOFOLLOW closes the gap
        # between the check above and this call.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_BINARY", 0) | (getattr(os, "O_NOFOLLOW", 0) if member else 0)
        with os.fdopen(os.open(path, flags), "rb") as handle:
            facts = os.fstat(handle.fileno())
            _require_plain_file(path, facts, member=member)
            if facts.st_size > limit_bytes:
                raise _too_large(path, facts.st_size, limit_bytes)
            # One byte more shows a growing file; asking for limit_bytes would reserve them all.
            content = handle.read(facts.st_size + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GenwardenError(
            "artifact/not-found", f"There is no file {path}.", "Check the path."
        ) from error
    except IsADirectoryError as error:
        raise _not_a_file(path, "a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise GenwardenError(
            "artifact/unreadable",
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).",
            "Check the path and its permissions.",
        ) from error
    except MemoryError as error:
        raise GenwardenError(
            "artifact/too-large",
            f"{path} does not fit into this machine's memory.",
            "Use a machine with more memory.",
        ) from error
    if len(content) != facts.st_size:
        raise GenwardenError(
            "artifact/unreadable",
            f"{path} changed its size while it was read.",
            "Wait until it is written, then repeat the command.",
        )
    if not content:
        raise GenwardenError(
            "artifact/empty", f"{path} is empty (0 bytes).", "Fetch the file again."
        )
    return content


def _require_plain_file(path: Path, facts: os.stat_result, *, member: bool) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise _not_a_file(path, "a folder")
    if not stat.S_ISREG(facts.st_mode):
        raise _not_a_file(path, "a device, pipe or socket")
    if member and facts.st_nlink > 1:
        raise _link(path, "a hard link (the file has a second name elsewhere)")


def _not_a_file(path: Path, what: str) -> GenwardenError:
    return GenwardenError(
        "artifact/not-a-file", f"{path} is {what}, not a file.", "Name a weights file."
    )


def _link(path: Path, what: str) -> GenwardenError:
    return GenwardenError(
        "artifact/link",
        f"{path} is {what}; files of a model folder must be plain files.",
        "Copy the folder with the links resolved, for example `cp -rL --no-preserve=links`.",
    )


def _too_large(path: Path, size: int, limit: int) -> GenwardenError:
    return GenwardenError(
        "artifact/too-large",
        f"{path} has {size:,} bytes, the limit is {limit:,}.",
        "Models of this size are not supported yet.",
    )
