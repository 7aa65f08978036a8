"""Tensors of several owners in one flat table, as files have them: ``OWNER/NAME``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def named(owner: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an owner under their names in the table, contiguous."""
    return {f"{owner}/{name}": tensor.contiguous() for name, tensor in tensors.items()}


def owned(owner: str, table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an owner under their own names; none where the table has none of them."""
    prefix = f"{owner}/"
    return {k.removeprefix(prefix): t for k, t in table.items() if k.startswith(prefix)}
