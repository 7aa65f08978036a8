"""Whether weights were compressed before: on a grid, or from a code book, of few values.

Trained weights are 24 bits long: in a block of 32 hardly two are equal, and their distances have no
common measure. Once they were rounded to k-bit codes they are a few whole steps apart, whatever the
scale, the zero point and what shares them (tensor, channel or group): a block of 32 shows it by
itself. So no grid is tried; the step is read off the block:

    step     the smallest distance of two values that differ
    codes    cumulated distances in whole steps, at most 2^8 of them
    grid     a straight line through (code, value) passes each value within a tenth of a step

That tenth leaves room for a copy in float16, not for one of int8 codes in bfloat16, whose 8 bits
are coarser than the grid. Code books of uneven values (NF4, k-means) show by equal values.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from genwarden.compression.layers import WeightLayer

_BLOCK: Final = 32
#: Shorter rows say too little by themselves: then the tensor is taken as it lies.
_LEAST_ROW: Final = 16
#: Of fewer values other than 0, as pruning leaves, some lie on a line by chance.
_LEAST_OTHER: Final = 12
#: Of larger layers, evenly chosen blocks stand for all.
_MOST_BLOCKS: Final = 4096
_MOST_CODES: Final = 256
#: How far a value may lie from its code, in steps.
_AWAY: Final = 0.1
#: Values nearer than this share of their block's range are the same one.
_SAME: Final = 1e-5


@torch.no_grad()
def share_of_few_values(weight: Tensor, layer: WeightLayer) -> float:
    """The share of a layer's blocks whose weights are on a grid of at most 8 bits, or from a book.

    Args:
        weight: of a convolution or linear layer.

    Returns:
        0 to 1; about 0 for what training left, about 1 for what was quantised. 0 for layers
        without a whole block.
    """
    blocks = _blocks(weight.detach(), layer)
    if not len(blocks):
        return 0.0
    return float((_on_a_grid(blocks) | _from_a_book(blocks)).double().mean())


def _blocks(weight: Tensor, layer: WeightLayer) -> Tensor:
    """``(blocks, size)``, float64, each sorted; from rows of one output channel where they are
    long enough."""
    rows = weight.movedim(layer.out_axis, 0).flatten(1)
    if rows.shape[1] < _LEAST_ROW:
        rows = rows.reshape(1, -1)
    size = min(_BLOCK, rows.shape[1])
    blocks = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
    stride = max(1, len(blocks) // _MOST_BLOCKS)
    return blocks[::stride].double().cpu().sort(1).values


def _distances(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of neighbours ``(blocks, size - 1)``, and which are between different values."""
    distances = blocks.diff(dim=1)
    spread = (blocks[:, -1:] - blocks[:, :1]).clamp_min(torch.finfo(blocks.dtype).tiny)
    return distances, distances > _SAME * spread


def _on_a_grid(blocks: Tensor) -> Tensor:
    distances, differ = _distances(blocks)
    step = torch.where(differ, distances, torch.inf).amin(1, keepdim=True)
    counted = torch.where(differ, (distances / step).round(), 0)
    codes = torch.cat([torch.zeros_like(step), counted.cumsum(1)], 1)
    # The line through (code, value), which the smallest distance alone would leave too steep.
    centred = codes - codes.mean(1, keepdim=True)
    from_mean = blocks - blocks.mean(1, keepdim=True)
    slope = (centred * from_mean).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
    away = ((from_mean - slope * centred) / slope).abs().amax(1)
    enough = (blocks != 0).sum(1) >= _LEAST_OTHER
    return (away <= _AWAY) & (codes[:, -1] < _MOST_CODES) & differ.any(1) & enough


def _from_a_book(blocks: Tensor) -> Tensor:
    """Whether most weights other than 0 have an equal; zeros are equal for other reasons, too."""
    _, differ = _distances(blocks)
    first = torch.cat([torch.ones_like(differ[:, :1]), differ], 1)  # of its value
    other = blocks != 0
    values = (first & other).sum(1)
    repeated = (values > 1) & (values <= other.sum(1) // 2)
    return repeated & (other.sum(1) >= _LEAST_OTHER)
