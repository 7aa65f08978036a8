"""Whether weights were compressed before: on a grid, or from a code book, of few values.

Trained weights are 24 bits long: in a block of 32 hardly two are equal, and their distances have no
common measure. Once they were rounded to k-bit codes they are a few whole steps apart, whatever the
scale, the zero point and what shares them: a block shows it by itself. So no grid is tried; the
step is read off the block:

    step     the smallest distance of two values that differ
    codes    cumulated distances in whole steps, at most 2^8 of them
    grid     a straight line through (code, value) passes each value within a tenth of a step

Blocks of 32, 16 and 8 lie along the channels of either axis; a smaller one fits into smaller
groups, and says less: in 8 values of 8-bit codes two neighbouring codes, which show the step, are
rarer. The tenth leaves room for a copy in float16, not for one of int8 codes in bfloat16, whose 8
bits are coarser than the grid. Code books of uneven values (NF4, k-means, 8-bit floats with a scale
per tensor) show by equal values: in blocks, and in a tensor of at most 256 different ones.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from genwarden.compression.layers import WeightLayer

#: Sizes of blocks, and how many values other than 0 each must hold: of fewer, as pruning leaves
#: them, some lie on a line by chance.
_SIZES: Final = {32: 12, 16: 10, 8: 7}
#: Of larger layers, evenly chosen blocks and weights stand for all.
_MOST_BLOCKS: Final = 4096
_MOST_WEIGHTS: Final = 65536
_MOST_CODES: Final = 256
#: A tensor from a code book has this many weights per value, at least.
_REPEATED: Final = 4
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
        0 to 1, for the size and the axis of blocks that show most; below 0.01 for what training
        left. 0 for layers without a whole block.
    """
    weight = weight.detach().cpu().double()
    if _whole_from_a_book(weight):
        return 1.0
    shares = [0.0]
    for axis in (layer.out_axis, 1 - layer.out_axis):
        rows = weight.movedim(axis, 0).flatten(1)
        for size, least in _SIZES.items():
            blocks = _blocks(rows, size)
            if len(blocks):
                found = _on_a_grid(blocks, least) | _from_a_book(blocks, least)
                shares.append(float(found.double().mean()))
    return max(shares)


def _blocks(rows: Tensor, size: int) -> Tensor:
    """``(blocks, size)``, each sorted; what does not fill one is left out."""
    blocks = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
    stride = max(1, len(blocks) // _MOST_BLOCKS)
    return blocks[::stride].sort(1).values


def _distances(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of neighbours ``(blocks, size - 1)``, and which are between different values."""
    distances = blocks.diff(dim=1)
    spread = (blocks[:, -1:] - blocks[:, :1]).clamp_min(torch.finfo(blocks.dtype).tiny)
    return distances, distances > _SAME * spread


def _on_a_grid(blocks: Tensor, least: int) -> Tensor:
    distances, differ = _distances(blocks)
    step = torch.where(differ, distances, torch.inf).amin(1, keepdim=True)
    counted = torch.where(differ, (distances / step).round(), 0)
    codes = torch.cat([torch.zeros_like(step), counted.cumsum(1)], 1)
    # The line through (code, value), which the smallest distance alone would leave too steep.
    centred = codes - codes.mean(1, keepdim=True)
    from_mean = blocks - blocks.mean(1, keepdim=True)
    slope = (centred * from_mean).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
    away = ((from_mean - slope * centred) / slope).abs().amax(1)
    enough = (blocks != 0).sum(1) >= least
    return (away <= _AWAY) & (codes[:, -1] < _MOST_CODES) & differ.any(1) & enough


def _from_a_book(blocks: Tensor, least: int) -> Tensor:
    """Whether most weights other than 0 have an equal; zeros are equal for other reasons, too."""
    _, differ = _distances(blocks)
    first = torch.cat([torch.ones_like(differ[:, :1]), differ], 1)  # of its value
    other = blocks != 0
    values = (first & other).sum(1)
    repeated = (values > 1) & (values <= other.sum(1) // 2)
    return repeated & (other.sum(1) >= least)


def _whole_from_a_book(weight: Tensor) -> bool:
    flat = weight.flatten()
    some = flat[:: max(1, len(flat) // _MOST_WEIGHTS)]
    some = some[some != 0]
    values = len(some.unique())
    return 1 < values <= min(_MOST_CODES, len(some) // _REPEATED)
