"""Reading weight files. No module of genwarden calls ``torch.load``.

The type is decided by content: a safetensors header, or a zip archive as ``torch.save`` writes it,
which a confined child process turns into safetensors without unpickling anything
(:mod:`genwarden.artifacts.reading_child`). There is no retry in a less safe mode.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from genwarden.artifacts.formats import identify
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.reading_child import read_in_child
from genwarden.artifacts.safetensors_header import read_header
from genwarden.artifacts.shown import reason
from genwarden.artifacts.torch_zip import no_tensors
from genwarden.errors import GenwardenError


class Weights(NamedTuple):
    """A state dict and the hash of the bytes that it was read from."""

    tensors: dict[str, Tensor]
    sha256: str


def read_weights(
    path: Path, *, expected_sha256: str | None = None, member: bool = False
) -> Weights:
    """Read a ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt`` file of plain tensors.

    The file is read once; what was hashed is what is parsed. Floating-point tensors of any
    precision come back as float32; values that are not finite come back as they are.

    Args:
        path: the file.
        expected_sha256: hash from a manifest; checked before anything is parsed.
        member: the file lies in a model folder, where links are refused.

    Raises:
        GenwardenError: codes ``artifact/...``.
    """
    content = read_once(path, member=member)
    digest = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256:
        raise GenwardenError(
            "artifact/hash-mismatch",
            f"{path} has sha256 {digest[:12]}..., its manifest says {expected_sha256[:12]}....",
            "The file was changed or damaged after it was written; fetch the folder again.",
        )
    return Weights(as_float32(parse_weights(content, str(path))), digest)


def parse_weights(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a weights file as they are stored.

    Raises:
        GenwardenError: codes ``artifact/...``.
    """
    if identify(content, where) == "safetensors":
        tensors = _parse_safetensors(content, where)
    else:
        tensors = _parse_torch_zip(content, where)
    if not tensors:
        raise no_tensors(where)
    return tensors


def as_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dense tensors, floating point as float32; tied tensors stay tied.

    Converting each name of a tied tensor for itself would let a small file claim much memory.
    """
    dense: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        view = _view_key(tensor)
        if view not in dense:
            wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
            dense[view] = tensor.detach().to(wanted).contiguous()
        result[name] = dense[view]
    return result


def _parse_safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    read_header(content, where)
    try:
        return load_safetensors(content)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise GenwardenError(
            "artifact/corrupt",
            f"{where} is not valid safetensors ({reason(error)}).",
            "The file is damaged; fetch it again.",
        ) from error


def _parse_torch_zip(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors as windows of the numbers that the child sent; tied tensors stay tied."""
    reading = read_in_child(content, where, "numbers")
    start = 8 + int.from_bytes(reading.content[:8], "little")
    storages = {}
    for facts in read_header(reading.content, where):
        dtype = getattr(torch, facts.dtype)
        if facts.size_bytes:
            storages[facts.name] = torch.frombuffer(
                reading.content, dtype=dtype, count=facts.shape[0], offset=start
            )
        else:
            storages[facts.name] = torch.zeros(0, dtype=dtype)
        start += facts.size_bytes
    return {
        window.name: storages[window.storage].as_strided(window.shape, window.stride, window.offset)
        for window in reading.windows
    }


def _view_key(tensor: Tensor) -> tuple[Any, ...]:
    if not tensor.numel():
        return (id(tensor),)  # empty tensors all share the null address
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
