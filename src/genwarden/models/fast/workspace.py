"""Memory of intermediate results that is used again: fresh pages cost more than many a layer."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Tensors by name; one of a name is overwritten by the next of that name.

    Belongs to one thread.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of undefined content, with the dtype and device of ``like``."""
        numbers = 1
        for length in shape:
            numbers *= length
        memory = self._memory.get(name)
        if (
            memory is None
            or memory.numel() < numbers
            or (memory.dtype, memory.device) != (like.dtype, like.device)
        ):
            memory = self._memory[name] = torch.empty(numbers, dtype=like.dtype, device=like.device)
        return memory[:numbers].view(shape)
