"""Block formats: GGUF's Q8_0 and Q4_0, and NF4. Few weights share a scale; nothing is calibrated.

These formats store weights as they are: batch norm is not folded first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.compression.contract import Box, Weights
from genwarden.compression.layers import Layout, WeightLayer

GGUF_BLOCK: Final = 32
NF4_BLOCK: Final = 64
#: The 16 values of NF4 (Dettmers et al., "QLoRA", appendix E): quantiles of a normal law, 0 exact.
NF4_VALUES: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
#: Boxes end this share of a step (of NF4: of the code's own interval) before the next code.
_MARGIN: Final = 1e-3
#: What is not its block's extreme stays this share below it, so that it never becomes it.
_BELOW: Final = 1 - 1e-5


@dataclass(frozen=True)
class _BlockFormat:
    """What all of them share: weights in rows ``(blocks, size)``, each row on its own."""

    folds: bool = False

    @property
    def name(self) -> str:
        """As a user types it."""
        raise NotImplementedError

    def decompressed(self, blocks: Tensor) -> Tensor:
        """``(blocks, size)`` to the values that are stored, no gradients."""
        raise NotImplementedError

    def interval(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the interval that has each weight's code while its block's scale stays."""
        raise NotImplementedError

    def in_blocks(self, weight: Tensor, layer: WeightLayer) -> Tensor:
        """GGUF's blocks lie along the flattened row of one output channel.

        The rest of a row that does not fill a block is padded with zeros (GGUF itself takes only
        rows that fill their blocks).
        """
        rows = weight.movedim(layer.out_axis, 0).flatten(1)
        return F.pad(rows, (0, -rows.shape[1] % GGUF_BLOCK)).reshape(-1, GGUF_BLOCK)

    def restored(self, blocks: Tensor, like: Tensor, layer: WeightLayer) -> Tensor:
        """Blocks back in the shape of the weight ``like``."""
        turned = like.movedim(layer.out_axis, 0)
        rows = blocks.reshape(len(turned), -1)[:, : turned[0].numel()]
        return rows.reshape(turned.shape).movedim(0, layer.out_axis)

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See :class:`genwarden.compression.contract.Compressor`."""
        made = {}
        for name, layer in layout.items():
            if name in weights:
                blocks = self.in_blocks(weights[name], layer)
                through = blocks + (self.decompressed(blocks.detach()) - blocks).detach()
                made[name] = self.restored(through, weights[name], layer)
        return made

    @torch.no_grad()
    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """Codes are kept, and the extremes of each block, which fix its scale, are frozen."""
        boxes = {}
        for name, layer in layout.items():
            if name not in weights:
                continue
            weight = weights[name]
            blocks = self.in_blocks(weight, layer)
            extreme = blocks.abs().amax(1, keepdim=True)
            low, high = self.interval(blocks)
            # A weight already nearer to the next code, or to the extreme, keeps its own place.
            low = torch.minimum(torch.maximum(low, -extreme * _BELOW), blocks)
            high = torch.maximum(torch.minimum(high, extreme * _BELOW), blocks)
            frozen = blocks.abs() == extreme
            low, high = torch.where(frozen, blocks, low), torch.where(frozen, blocks, high)
            boxes[name] = Box(self.restored(low, weight, layer), self.restored(high, weight, layer))
        return boxes


@dataclass(frozen=True)
class Q8_0(_BlockFormat):  # noqa: N801 (the format's own name)
    """GGUF's Q8_0: 32 codes of 8 bits, scale = largest magnitude / 127, kept as float16."""

    @property
    def name(self) -> str:
        """``q8_0``."""
        return "q8_0"

    def decompressed(self, blocks: Tensor) -> Tensor:
        """See the base."""
        codes, scale = self._codes(blocks)
        return codes * _as_half(scale)

    def interval(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See the base."""
        codes, scale = self._codes(blocks)
        reach = 0.5 - _MARGIN
        return (codes - reach) * scale, (codes + reach) * scale

    @staticmethod
    def _codes(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers, halves away from zero, by the scale before it becomes float16."""
        scale = blocks.abs().amax(1, keepdim=True) / 127
        position = blocks * _inverse(scale)
        size = position.abs()
        floor = size.floor()
        return position.sign() * (floor + (2 * (size - floor)).floor()), scale


@dataclass(frozen=True)
class Q4_0(_BlockFormat):  # noqa: N801
    """GGUF's Q4_0: 32 codes of 4 bits, 0 to 15 for -8 to 7 steps.

    The scale is the extreme with its sign / -8, so that the extreme always has the code 0.
    """

    @property
    def name(self) -> str:
        """``q4_0``."""
        return "q4_0"

    def decompressed(self, blocks: Tensor) -> Tensor:
        """See the base."""
        codes, scale = self._codes(blocks)
        return (codes - 8) * _as_half(scale)

    def interval(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See the base."""
        codes, scale = self._codes(blocks)
        reach = 0.5 - _MARGIN
        # Beyond the last code is clipped to it: only the extreme bounds it.
        ends = (codes - 8 - reach) * scale, (codes - 8 + torch.where(codes == 15, 1, reach)) * scale
        return torch.minimum(*ends), torch.maximum(*ends)

    @staticmethod
    def _codes(blocks: Tensor) -> tuple[Tensor, Tensor]:
        extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = extreme / -8
        position = blocks.double() * _inverse(scale).double() + 8.5
        return position.trunc().clamp(0, 15).to(blocks), scale


@dataclass(frozen=True)
class NF4(_BlockFormat):
    """4-bit NormalFloat: 64 weights of the flattened tensor, divided by their largest magnitude,
    go to the nearest of 16 values; without QLoRA's second quantisation, of the scales."""

    @property
    def name(self) -> str:
        """``nf4``."""
        return "nf4"

    def in_blocks(self, weight: Tensor, layer: WeightLayer) -> Tensor:  # noqa: ARG002
        """Blocks of the whole tensor as it lies in memory, as bitsandbytes takes it."""
        flat = weight.reshape(-1)
        return F.pad(flat, (0, -len(flat) % NF4_BLOCK)).reshape(-1, NF4_BLOCK)

    def restored(self, blocks: Tensor, like: Tensor, layer: WeightLayer) -> Tensor:  # noqa: ARG002
        """See the base."""
        return blocks.reshape(-1)[: like.numel()].reshape(like.shape)

    def decompressed(self, blocks: Tensor) -> Tensor:
        """See the base."""
        values, codes, scale = self._codes(blocks)
        return values[codes] * scale

    def interval(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Between the midpoints to the neighbours in the code book."""
        values, codes, scale = self._codes(blocks)
        between = (values[1:] + values[:-1]) / 2
        edges = torch.cat([values[:1], between, values[-1:]])
        margin = _MARGIN * edges.diff()
        return (edges[:-1] + margin)[codes] * scale, (edges[1:] - margin)[codes] * scale

    @staticmethod
    def _codes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.tensor(NF4_VALUES, dtype=blocks.dtype, device=blocks.device)
        scale = blocks.abs().amax(1, keepdim=True)
        between = (values[1:] + values[:-1]) / 2
        return values, torch.bucketize(blocks * _inverse(scale), between), scale


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 for a block of zeros."""
    return torch.where(scale == 0, 0, 1 / torch.where(scale == 0, 1, scale))


def _as_half(scale: Tensor) -> Tensor:
    """As it comes back from storage in 16 bits."""
    return scale.half().to(scale)
