"""Positions of feature maps that are kept in the order that is cheapest to compute.

Maps are stored as ``(positions, channels, batch)``: every sample is a column, so that each layer is
a few large matrix products and no sample can touch another. A transposed convolution of stride s
makes s x s outputs beside every input position; leaving them beside it saves a transposition, and
the next layer only has to know which position is where.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """``height`` x ``width`` positions in the order in which they are stored.

    Attributes:
        factors: per axis the strides that the storage is nested by, coarse position first:
            position = ((coarse * s1 + r1) * s2 + r2) ..., stored coarse, r1, r2, ... with height
            before width at each level.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def height(self) -> int:
        """Rows."""
        return _product(self.heights)

    @property
    def width(self) -> int:
        """Columns."""
        return _product(self.widths)

    @property
    def count(self) -> int:
        """Positions."""
        return self.height * self.width

    def split(self, stride: tuple[int, int]) -> Grid:
        """The grid of a transposed convolution's output."""
        return Grid((*self.heights, stride[0]), (*self.widths, stride[1]))

    def stored(self, plane: Tensor) -> Tensor:
        """A view of ``(height, width, ...)`` in storage order, its levels as axes of their own."""
        levels = len(self.heights)
        nested: Tensor = torch.unflatten(torch.unflatten(plane, 1, self.widths), 0, self.heights)
        order = [axis for level in range(levels) for axis in (level, levels + level)]
        rest = range(2 * levels, nested.ndim)
        return nested.permute(*order, *rest)

    def levels(self) -> list[int]:
        """Lengths of those axes."""
        return [length for pair in zip(self.heights, self.widths, strict=True) for length in pair]

    def coordinates(self) -> Tensor:
        """``(count, 2)``: row and column of every stored position, float64."""
        rows = torch.arange(self.height, dtype=torch.float64)
        columns = torch.arange(self.width, dtype=torch.float64)
        plane = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        return self.stored(plane).reshape(-1, 2)


def _product(factors: tuple[int, ...]) -> int:
    product = 1
    for factor in factors:
        product *= factor
    return product
