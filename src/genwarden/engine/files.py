"""Atomic writes and hashes: the only place where genwarden creates a result file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from torch import Tensor

_HASH_CHUNK_BYTES = 1 << 20
#: Ends of names that no result has: a file that is being written, a folder that is being removed.
_PARTIAL = ".partial"
_DOOMED = ".removed"
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never half.

    Temporary name in the same folder, flush, fsync, rename. What a killed process left of an
    earlier attempt at the same file is removed.

    Raises:
        GenwardenError: ``output/not-writable`` when the folder or the disk refuses the write.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.{os.getpid()}.", suffix=_PARTIAL, dir=path.parent
        )
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the reason is on its way already
                os.unlink(temporary)


def remove_file(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        GenwardenError: ``output/not-writable``.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there.

    It gets another name first, so that one that was half removed when the process died is never
    taken for whole.

    Raises:
        GenwardenError: ``output/not-writable``.
    """
    doomed = folder.with_name(f".{folder.name.lstrip('.')}{_DOOMED}")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        if folder.is_symlink():  # what it leads to is not ours
            folder.unlink()
        elif folder.exists():
            os.replace(folder, doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for ``path`` whose process is no more."""
    start = f".{path.name}."
    with os.scandir(path.parent) as entries:
        left = [e.name for e in entries if e.name.startswith(start) and e.name.endswith(_PARTIAL)]
    for name in left:
        process = name.removeprefix(start).partition(".")[0]
        if process.isdecimal() and not _is_running(int(process)):
            with suppress(FileNotFoundError):
                os.unlink(path.parent / name)


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no process has such a number
        return True
    return True


def _not_writable(path: Path, error: OSError) -> GenwardenError:
    return GenwardenError(
        "output/not-writable",
        f"Cannot write {path}: {error.strerror or error}.",
        "Choose another --out folder, or give this one write permission and free space.",
    )


def json_bytes(document: Any) -> bytes:
    """``document`` as indented UTF-8 JSON. NaN and infinity are refused.

    What UTF-8 does not have (a byte of a file name that is no text) is spelled out.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    spelled = _SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text)
    return (spelled + "\n").encode()


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as :func:`json_bytes`, atomically."""
    write_atomic(path, json_bytes(document))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically. Tensors are moved to the CPU and made dense."""
    from safetensors.torch import save

    write_atomic(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}))


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of a byte string."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_no_file(folder: Path) -> None:
    """Nothing but a folder lies where one is to be.

    Raises:
        GenwardenError: ``output/not-a-folder``.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):  # os.path's never raise
        raise GenwardenError(
            "output/not-a-folder",
            f"--out {folder} is a file, not a folder.",
            "Name a folder that does not exist yet or an existing one.",
        )


def require_writable_folder(folder: Path) -> None:
    """Make ``folder`` and prove that a file can be created in it, before hours are spent.

    Raises:
        GenwardenError: ``output/not-writable``, or ``output/not-a-folder`` if a file is in the way.
    """
    require_no_file(folder)
    probe = folder / ".genwarden-probe"
    write_atomic(probe, b"")
    remove_file(probe)


def begin_run(out: Path, marker: str, *, restart: bool, kind: str, anew: str) -> Path:
    """Make ``out`` ready for a run that can be resumed; returns the folder of its unfinished work.

    Args:
        marker: the file that is written last and makes the folder a finished model.
        restart: throw unfinished work and the marker away.
        kind: first part of the error's code.
        anew: what ``--restart`` does, for the remedy.

    Raises:
        GenwardenError: ``KIND/finished`` if the folder holds a finished model, or ``output/...``.
    """
    require_writable_folder(out)
    work = out / ".work"
    if restart:
        remove_file(out / marker)  # first: without it, the folder no longer looks finished
        remove_folder(work)
    if (out / marker).exists():
        remove_folder(work)  # stopped between the last file and this
        raise GenwardenError(
            f"{kind}/finished",
            f"{out} holds a finished model already.",
            f"Choose another --out folder, or add --restart to {anew}.",
        )
    return work


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
