"""Reading a torch file in a child process that has nothing to lose (R-3).

The child (:mod:`genwarden.artifacts.child_main`) gets a private copy of the file as its only
descriptor, no environment, no network, no right to files or processes, limits on memory and time
(:mod:`genwarden.artifacts.confinement`). It does not unpickle either: it reads the pickle as a
description (:mod:`genwarden.artifacts.state_pickle`), with the standard library alone. Why not
torch's restricted loader in the child: that is an unpickler in C++ and Python with two serious
flaws so far, it takes three seconds to import, and its address space cannot be limited to less than
gigabytes; this child starts in 0.05 s and is refused memory beyond the file's own size. Tests hold
the two against each other.

What comes back is safetensors with a small JSON document, and is treated as hostile again: header
and windows are checked here as strictly as those of any file. Whatever the child dies of ends in
one code.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple

from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.limits import (
    CHILD_MEMORY_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    child_seconds,
)
from genwarden.artifacts.safetensors_header import (
    BYTES_OF,
    TensorFacts,
    read_header,
    read_metadata,
)
from genwarden.artifacts.shown import shown
from genwarden.errors import ExitCode, GenwardenError

_CHUNK_BYTES: Final = 1 << 20
_CODES: Final = frozenset(
    f"artifact/{code}"
    for code in (
        "truncated", "corrupt", "zip-refused", "torchscript", "pickle-refused",
        "unsupported-tensor", "too-complex", "not-a-state-dict", "tensor-exceeds-file",
        "no-tensors",
    )
)  # fmt: skip
#: Runs before anything is imported from this package: the child has no environment and no site.
_START: Final = (
    "import sys; sys.path.append({root!r}); from genwarden.artifacts.child_main import main; main()"
)
#: What the child exits with when its memory does not suffice; as in child_main, which this process
#: does not import.
OUT_OF_MEMORY: Final = 86
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]


class Window(NamedTuple):
    """A tensor as a strided window of a flat storage, in elements."""

    name: str
    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Reading(NamedTuple):
    """What the child found.

    Attributes:
        windows: the tensors.
        content: safetensors with the storages; without them where only facts were asked for.
        confined: the layers of confinement that held in the child.
    """

    windows: list[Window]
    content: bytearray
    confined: tuple[str, ...]


def read_in_child(
    content: bytes, where: str, wanted: Literal["facts", "numbers"], *, start: str | None = None
) -> Reading:
    """Read a torch file in a confined process.

    Args:
        start: the program of the child, for tests of how it may die.

    Raises:
        GenwardenError: as :func:`genwarden.artifacts.torch_zip.read_plan`, and
            ``artifact/reader-died``, ``artifact/reader-memory``, ``artifact/reader-timeout``,
            ``artifact/reader-garbled``, and ``artifact/no-confinement`` (exit code "inconclusive").
    """
    if os.name != "posix" or not sys.executable:
        raise GenwardenError(
            "artifact/no-confinement",
            f"{where} is a torch file, and this platform has no means to confine its reader.",
            "Convert the file to safetensors on Linux or macOS, or ask its author for it.",
            ExitCode.INCONCLUSIVE,
        )
    seconds = child_seconds(len(content))
    memory_bytes = CHILD_MEMORY_BYTES + len(content)
    program = start or _START.format(root=str(_PACKAGE_ROOT))
    command = [sys.executable, "-I", "-S", "-B", "-c", program]
    command += [str(memory_bytes), str(int(seconds) + 1), wanted]
    longest = len(content) + 2 * MAX_HEADER_BYTES
    with _private_copy(content) as copy:
        answer, status = _run(command, copy, seconds, longest, where)
    if status:
        raise _died(where, status)
    return _understand(answer, where, wanted)


def _private_copy(content: bytes) -> IO[bytes]:
    """The content as a file that nobody else can name, at its start."""
    if hasattr(os, "memfd_create"):
        copy: IO[bytes] = os.fdopen(os.memfd_create("genwarden"), "w+b")
    else:
        copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the caller
    copy.write(content)
    copy.seek(0)
    return copy


def _run(
    command: list[str], copy: IO[bytes], seconds: float, longest: int, where: str
) -> tuple[bytearray, int]:
    """The child's output and exit status; it never outlives this call."""
    deadline = time.monotonic() + seconds
    answer = bytearray()
    with subprocess.Popen(  # noqa: S603  # our own interpreter and program
        command,
        stdin=copy,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None  # noqa: S101  # asked for above
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                while True:
                    rest = deadline - time.monotonic()
                    if rest <= 0 or not selector.select(rest):
                        raise _timeout(where, seconds)
                    chunk = os.read(child.stdout.fileno(), _CHUNK_BYTES)
                    if not chunk:
                        break
                    answer += chunk
                    if len(answer) > longest:
                        raise _garbled(where, "is longer than the file can be")
            status = child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise _timeout(where, seconds) from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return answer, status


def _understand(answer: bytearray, where: str, wanted: str) -> Reading:
    """The answer, checked like any other untrusted file."""
    try:
        storages = {facts.name: facts for facts in read_header(answer, "the answer")}
        about = load_json(
            read_metadata(answer)["about"].encode(),
            most_bytes=MAX_HEADER_BYTES,
            most_values=40 * MAX_TENSORS,
        )
        confined = tuple(str(layer) for layer in about["confined"])
        if "refused" in about:
            code, cause, remedy = about["refused"]
            if code not in _CODES or not all(isinstance(text, str) for text in (cause, remedy)):
                raise _garbled(where, "gives an unknown reason")
            raise GenwardenError(
                code, f"{where} {shown(cause, limit=300)}", shown(remedy, limit=200)
            )
        windows = [_window(row) for row in about["tensors"]]
    except GenwardenError as error:
        if error.code in _CODES and error.cause.startswith(f"{where} "):
            raise
        raise _garbled(where, "is malformed") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _garbled(where, "is malformed") from error
    if not windows or len({window.name for window in windows}) != len(windows):
        raise _garbled(where, "names no tensor, or one twice")
    if wanted == "numbers":
        for window in windows:
            _require_inside(window, storages, where)
    return Reading(windows, answer, confined)


def _window(row: Any) -> Window:
    name, storage, dtype, offset, shape, stride = row
    numbers = [offset, *shape, *stride]
    if not isinstance(name, str) or not isinstance(storage, str) or dtype not in BYTES_OF:
        raise TypeError("a name is no text, or no element type")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) or len(shape) != len(stride):
        raise TypeError("a window is malformed")
    return Window(name, storage, dtype, offset, tuple(shape), tuple(stride))


def _require_inside(window: Window, storages: dict[str, TensorFacts], where: str) -> None:
    facts = storages.get(window.storage)
    if facts is None or facts.dtype != window.dtype or len(facts.shape) != 1:
        raise _garbled(where, "describes a tensor without numbers")
    steps = zip(window.shape, window.stride, strict=True)
    numbers = 0 not in window.shape
    last = window.offset + (sum((n - 1) * s for n, s in steps) if numbers else -1)
    if last >= facts.shape[0]:
        raise _garbled(where, "describes a tensor beyond its numbers")


def _died(where: str, status: int) -> GenwardenError:
    if status == OUT_OF_MEMORY:
        return GenwardenError(
            "artifact/reader-memory",
            f"Reading {where} takes more memory than a file of its size may ask for.",
            "Ask its author for safetensors.",
        )
    if status < 0:
        how = f"was ended by signal {-status} ({signal.Signals(-status).name})"
    else:
        how = f"ended with status {status}"
    return GenwardenError(
        "artifact/reader-died",
        f"The confined process that read {where} {how}; the file may be an attack on it.",
        "Do not open the file by other means; ask its author for safetensors.",
    )


def _timeout(where: str, seconds: float) -> GenwardenError:
    return GenwardenError(
        "artifact/reader-timeout",
        f"Reading {where} took longer than {seconds:.0f} s and was stopped.",
        "Repeat the command if the machine was busy; otherwise ask for safetensors.",
    )


def _garbled(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/reader-garbled",
        f"The answer of the confined process that read {where} {problem}.",
        "Do not open the file by other means; ask its author for safetensors.",
    )
