"""Atomic writes and hashes: the only place where genwarden creates a result file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from torch import Tensor

_HASH_CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never half.

    Temporary name in the same folder, flush, fsync, rename.

    Raises:
        GenwardenError: ``output/not-writable`` when the folder or the disk refuses the write.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise GenwardenError(
            "output/not-writable",
            f"Cannot write {path}: {error.strerror or error}.",
            "Choose another --out folder, or give this one write permission and free space.",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as indented UTF-8 JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


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


def require_writable_folder(folder: Path) -> None:
    """Make ``folder`` and prove that a file can be created in it, before hours are spent.

    Raises:
        GenwardenError: ``output/not-writable``, or ``output/not-a-folder`` if a file is in the way.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):  # os.path's never raise
        raise GenwardenError(
            "output/not-a-folder",
            f"--out {folder} is a file, not a folder.",
            "Name a folder that does not exist yet or an existing one.",
        )
    probe = folder / ".genwarden-probe"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


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
        shutil.rmtree(work, ignore_errors=True)
        (out / marker).unlink(missing_ok=True)
    if (out / marker).exists():
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
