"""Checkpoints of our own training runs: one safetensors file, replaced atomically.

Everything a step depends on is in the file or follows from the step's number (see
``engine.seeds``), so a resumed run continues bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from genwarden.engine.files import write_atomic
from genwarden.engine.parts import owned
from genwarden.errors import GenwardenError

Trainable = nn.Module | Optimizer


class Restored(NamedTuple):
    """Steps that are done, and the record that was kept with them."""

    step: int
    record: dict[str, Any]


def save_checkpoint(
    path: Path,
    *,
    run_id: str,
    step: int,
    parts: Mapping[str, Trainable],
    record: Mapping[str, Any],
) -> None:
    """Write modules, optimisers and a JSON record after ``step`` finished steps."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        for key, value in _tensors_of(part).items():
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous().clone()
    meta = {"run_id": run_id, "step": str(step), "record": json.dumps(dict(record))}
    meta["sha256"] = _digest(meta, tensors)
    write_atomic(path, save(tensors, metadata=meta))


def load_checkpoint(path: Path, *, run_id: str, parts: Mapping[str, Trainable]) -> Restored | None:
    """Restore the parts in place; None if there is no checkpoint yet.

    Raises:
        GenwardenError: ``checkpoint/other-run`` if settings differ from the run that wrote it;
            ``checkpoint/damaged`` if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            meta = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if meta.get("run_id") != run_id:
        raise GenwardenError(
            "checkpoint/other-run",
            f"{path.parent.parent} holds an unfinished run with other settings.",
            "Choose another --out folder, repeat the first command to finish it, "
            "or add --restart to throw it away.",
        )
    if meta.pop("sha256", None) != _digest(meta, tensors):
        raise _damaged(path, "its content does not match its checksum")
    for name, part in parts.items():
        _restore(part, owned(name, tensors))
    return Restored(int(meta["step"]), json.loads(meta["record"]))


def _digest(meta: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A flipped bit in a weight loads silently (safetensors has no checksum), so we add one."""
    digest = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> GenwardenError:
    return GenwardenError(
        "checkpoint/damaged",
        f"The checkpoint {path} cannot be used ({why}).",
        "Delete it, or repeat the command with --restart to begin anew.",
    )


def _tensors_of(part: Trainable) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    state = part.state_dict()["state"]
    return {
        f"{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def _restore(part: Trainable, tensors: dict[str, Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, field = key.partition("/")
        state.setdefault(int(index), {})[field] = value
    part.load_state_dict({**part.state_dict(), "state": state})
