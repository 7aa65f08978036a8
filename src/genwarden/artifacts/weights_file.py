"""Reading weight files. The only module that calls ``torch.load``, always ``weights_only=True``.

The type is decided by content: a safetensors header or a zip archive as ``torch.save`` writes it.
There is no retry in a less safe mode.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from genwarden.artifacts.formats import identify
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.safetensors_header import read_header
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.torch_zip import require_plain_state_dict
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


def no_tensors(where: str) -> GenwardenError:
    """The error for a well-formed file without a tensor."""
    return GenwardenError(
        "artifact/no-tensors", f"{where} holds no tensors.", "Give a file with model weights."
    )


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
    require_plain_state_dict(content, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises at least five unrelated types here (measured, see hostile_files.md).
        raise GenwardenError(
            "artifact/pickle-refused",
            f"{where} is not a plain state dict that torch's restricted loader accepts "
            f"({reason(error)}).",
            "Never load it with weights_only=False; ask its author for safetensors.",
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()
    ):
        raise GenwardenError(
            "artifact/not-a-state-dict",
            f"{where} holds something other than a dictionary of named tensors.",
            "Save model.state_dict() and give that file.",
        )
    tensors = dict(loaded)
    _require_dense_and_backed(tensors, len(content), where)
    return tensors


def _require_dense_and_backed(tensors: dict[str, Tensor], stored: int, where: str) -> None:
    """Every number of every tensor must have its own bytes in the file (C-9).

    A stride of zero makes 10^12 elements out of one; many overlapping views of one storage do the
    same in small steps. Two names for the very same view (tied weights) are counted once.
    """
    views: set[tuple[Any, ...]] = set()
    claimed = 0
    for name, tensor in tensors.items():
        plain = type(tensor) in {Tensor, nn.Parameter} and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
            raise GenwardenError(
                "artifact/unsupported-tensor",
                f"Tensor {shown(name)!r} of {where} is not a dense tensor of real numbers.",
                "Save the weights as dense float tensors.",
            )
        view = _view_key(tensor)
        claimed += 0 if view in views else tensor.numel() * tensor.element_size()
        views.add(view)
        if claimed > stored:
            raise GenwardenError(
                "artifact/tensor-exceeds-file",
                f"Tensor {shown(name)!r} of {where} claims more data than the file holds.",
                "The file is malformed; do not use it.",
            )


def _view_key(tensor: Tensor) -> tuple[Any, ...]:
    if not tensor.numel():
        return (id(tensor),)  # empty tensors all share the null address
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
