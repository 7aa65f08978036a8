"""What a compressor is: a pure, differentiable map from weights to weights, and its boxes.

Every file of this room that compresses holds one or more frozen dataclasses of this form. They see
folded weights if they ask for them (``folds``), never a network: applying them to one is
:mod:`genwarden.compression.apply`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genwarden.compression.layers import Layout

Weights = Mapping[str, Tensor]


class Box(NamedTuple):
    """Closed intervals per weight, of the weight's shape; ``low == high`` freezes one.

    Whatever weights lie in a compressor's boxes, they compress to the same weights.
    """

    low: Tensor
    high: Tensor

    def clip(self, weight: Tensor) -> Tensor:
        """The nearest weight inside."""
        return torch.minimum(torch.maximum(weight, self.low), self.high)

    def cut(self, other: Box) -> Box:
        """The intersection; empty intervals are for the caller to notice."""
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))


class Compressor(Protocol):
    """One way to compress.

    Attributes:
        name: what a user types (``int8-per-channel``), which repeats it exactly.
        folds: whether batch norm is folded into the weights first, as deployment tools do before
            they quantise (and not before they prune).
    """

    @property
    def name(self) -> str: ...

    @property
    def folds(self) -> bool: ...

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """The weights that this compressor works on, decompressed again; others are left out.

        Rounding passes gradients straight through; what is pruned gets none.
        """
        ...

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """For each weight that is worked on: where it may move with the outcome unchanged."""
        ...


def in_name(number: float) -> str:
    """A number in a compressor's name: all its digits, no exponent (0.3, 1.02, 0.00001)."""
    return f"{Decimal(repr(float(number))).normalize():f}"
