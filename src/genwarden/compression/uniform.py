"""Uniform quantisation to k bits: symmetric or affine, per tensor, channel or group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.compression.contract import Box, Weights, in_name
from genwarden.compression.layers import Layout, WeightLayer
from genwarden.compression.spelling import check_uniform
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

Granularity = Literal["tensor", "channel", "group"]
Rounding = Literal["nearest", "stochastic"]

#: Boxes end this share of a step before the next code, so that float32 cannot round across.
_MARGIN: Final = 1e-3


class Grid(NamedTuple):
    """Blocks of weights that share a scale, and the grid of each.

    Attributes:
        blocks: weights ``(blocks, size)``; the last block of a channel may be padded with zeros.
        scale: width of one step ``(blocks, 1)``, positive.
        zero: code of the weight 0 ``(blocks, 1)``.
        least: smallest code.
        most: largest code.
    """

    blocks: Tensor
    scale: Tensor
    zero: Tensor
    least: int
    most: int


@dataclass(frozen=True)
class Uniform:
    """k-bit codes at equal distances, from the smallest and largest weight of each block.

    Attributes:
        bits: 2 to 8.
        affine: a zero point of its own; otherwise symmetric around 0, codes -(2^(k-1) - 1) and up.
        granularity: what shares a scale: the tensor, an output channel, or ``group_size`` weights
            of one output channel.
        power_of_two: scales are rounded up to powers of two (shift arithmetic).
        rounding: to the nearest code, or up with the probability of the remainder.
        scale_factor: what each scale is multiplied with (1: as published).
        seed: of stochastic rounding.
    """

    bits: int = 8
    affine: bool = False
    granularity: Granularity = "tensor"
    group_size: int = 32
    power_of_two: bool = False
    rounding: Rounding = "nearest"
    scale_factor: float = 1.0
    seed: int = 0
    folds: bool = True

    def __post_init__(self) -> None:
        check_uniform(self.bits, self.group_size, self.scale_factor)

    @property
    def name(self) -> str:
        """As a user types it: ``int4-affine-per-channel-stochastic``."""
        words = [f"int{self.bits}"]
        words += ["affine"] * self.affine
        words += {"tensor": [], "channel": ["per-channel"], "group": [f"group{self.group_size}"]}[
            self.granularity
        ]
        words += ["power2"] * self.power_of_two
        words += ["stochastic"] * (self.rounding == "stochastic")
        words += [f"scale{in_name(self.scale_factor)}"] * (self.scale_factor != 1)
        return "-".join(words)

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See :class:`genwarden.compression.contract.Compressor`."""
        return {n: self._one(weights[n], layer) for n, layer in layout.items() if n in weights}

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """Codes are kept, and so is what fixes the scale: the extremes of each block are frozen.

        Only for rounding to nearest: a random outcome has no box.
        """
        if self.rounding != "nearest":
            raise GenwardenError(
                "compress/no-box",
                f"{self.name} rounds at random, so no weight has a code of its own.",
                "Use rounding to nearest.",
            )
        return {n: self._box(weights[n], layer) for n, layer in layout.items() if n in weights}

    def grid(self, weight: Tensor, layer: WeightLayer) -> Grid:
        """The blocks of a weight and their grids; no gradients flow to the scale."""
        blocks = self._blocks(weight, layer)
        seen = blocks.detach()
        most = 2 ** (self.bits - 1) - 1
        if self.affine:
            low = seen.amin(1, keepdim=True).clamp(max=0)
            high = seen.amax(1, keepdim=True).clamp(min=0)
            scale = self._scale((high - low) / (2**self.bits - 1))
            zero = torch.round(-low / scale) - (most + 1)
            return Grid(blocks, scale, zero, -(most + 1), most)
        scale = self._scale(seen.abs().amax(1, keepdim=True) / most)
        return Grid(blocks, scale, torch.zeros_like(scale), -most, most)

    def codes(self, grid: Grid, layer: WeightLayer) -> Tensor:
        """Whole numbers ``(blocks, size)`` as floats."""
        position = grid.blocks.detach() / grid.scale + grid.zero
        if self.rounding == "nearest":
            rounded = torch.round(position)
        else:
            stream = random_stream(self.seed, f"rounding/{layer.name}")
            noise = torch.rand(position.shape, generator=stream).to(position)
            rounded = torch.floor(position + noise)
        return rounded.clamp(grid.least, grid.most)

    def restore(self, blocks: Tensor, like: Tensor, layer: WeightLayer) -> Tensor:
        """Blocks back in the shape of the weight ``like``."""
        if self.granularity == "tensor":
            return blocks.reshape(like.shape)
        turned = like.movedim(layer.out_axis, 0)
        width = turned[0].numel()
        return (
            blocks.reshape(len(turned), -1)[:, :width]
            .reshape(turned.shape)
            .movedim(0, layer.out_axis)
        )

    def _one(self, weight: Tensor, layer: WeightLayer) -> Tensor:
        grid = self.grid(weight, layer)
        values = (self.codes(grid, layer) - grid.zero) * grid.scale
        through = grid.blocks + (values - grid.blocks).detach()
        return self.restore(through, weight, layer)

    @torch.no_grad()
    def _box(self, weight: Tensor, layer: WeightLayer) -> Box:
        grid = self.grid(weight, layer)
        codes, blocks = self.codes(grid, layer), grid.blocks
        reach = 0.5 - _MARGIN
        smallest, largest = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        if not self.affine:
            largest = blocks.abs().amax(1, keepdim=True)
            smallest = -largest
        low = torch.maximum((codes - reach - grid.zero) * grid.scale, smallest)
        high = torch.minimum((codes + reach - grid.zero) * grid.scale, largest)
        # A weight already nearer to the next code than the margin keeps its place.
        low, high = torch.minimum(low, blocks), torch.maximum(high, blocks)
        frozen = (blocks == smallest) | (blocks == largest)
        low, high = torch.where(frozen, blocks, low), torch.where(frozen, blocks, high)
        return Box(self.restore(low, weight, layer), self.restore(high, weight, layer))

    def _scale(self, scale: Tensor) -> Tensor:
        scale = torch.where(scale > 0, scale, torch.ones_like(scale)) * self.scale_factor
        return torch.exp2(torch.ceil(torch.log2(scale))) if self.power_of_two else scale

    def _blocks(self, weight: Tensor, layer: WeightLayer) -> Tensor:
        if self.granularity == "tensor":
            return weight.reshape(1, -1)
        rows = weight.movedim(layer.out_axis, 0).flatten(1)
        if self.granularity == "channel":
            return rows
        missing = -rows.shape[1] % self.group_size
        return F.pad(rows, (0, missing)).reshape(-1, self.group_size)
