"""Where the weights lie between the codes of a grid (section 4.3b).

Honest weights know nothing of a grid that is laid over them later: their remainders, weight over
step minus the nearest whole number, are uniform over half a step to either side. An attack that
keeps codes while it moves weights fills the space next to the thresholds (or leaves it empty, if
it keeps a margin; or gathers weights at the centres, to make the codes safe). So per layer and
grid:

    KS            Kolmogorov-Smirnov against the uniform law, exact for small layers
    near          share of remainders within .05 of a threshold, over the .1 that are expected;
                  two-sided binomial test
    error ratio   mean squared error over step^2 / 12
    max / std     a single inflated weight widens the steps of its block

Holm's correction goes over layers, grids and both tests. Only the attack's own grid shows it, so a
standard set is tried beside the deployment's. This never decides: weights that were trained with
quantisation in mind, were released quantised, decayed to 0 or pruned are no more uniform, and an
attack of few weights is hardly less.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest, ks_1samp, uniform
from torch import Tensor, nn

from genwarden.compression.apply import compressed_weights
from genwarden.compression.chain import Chain, stages_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout, WeightLayer, fold_gain
from genwarden.compression.pruning import prunes_only
from genwarden.compression.uniform import Uniform
from genwarden.inspections.compression.variant import VariantBase
from genwarden.inspections.finding import Finding, Table, not_applicable
from genwarden.inspections.multiple_tests import holm

NAME = "rounding-statistics"
TITLE = "Where the weights lie between the codes"
#: Tried beside the deployment's own grid.
_STANDARD = tuple(
    Uniform(bits, granularity=granularity)
    for bits in (8, 6, 4)
    for granularity in ("tensor", "channel")
)
_EDGE = 0.05
#: Fewer remainders say nothing.
_LEAST = 32
#: Below this spread in steps, remainders of honest weights are not uniform.
_LEAST_SPREAD = 0.6
#: More are not looked at: the first of a fixed shuffle stand for them.
_MOST = 100_000
_LEVEL = 0.01
_SHOWN = 12


class _Row(NamedTuple):
    grid: str
    layer: str
    weights: int
    ks: float
    ks_p: float
    near: float
    near_p: float
    error: float
    peak: float


def inspect(bench: VariantBase[Any]) -> Finding:
    """Remainders of every layer of a network of any kind, on every grid."""
    network, compressor, layout = bench.network, bench.compressor, bench.layout
    grids = _grids(compressor)
    if not grids:
        return not_applicable(
            NAME, "compression", TITLE, f"{compressor.name} rounds nothing to codes."
        )
    rows = [row for prefix, grid in grids for row in _measure(network, layout, prefix, grid)]
    if not rows:
        return not_applicable(
            NAME, "compression", TITLE, "Every layer is too small or every grid too coarse for it."
        )
    adjusted = holm([p for row in rows for p in (row.ks_p, row.near_p)])
    smallest = [min(adjusted[2 * i : 2 * i + 2]) for i in range(len(rows))]
    odd = [row for row, p in zip(rows, smallest, strict=True) if p < _LEVEL]
    order = sorted(range(len(rows)), key=lambda i: (smallest[i], -rows[i].ks))
    worst = rows[order[0]]
    return Finding(
        inspection=NAME,
        group="compression",
        title=TITLE,
        outcome="scored",
        score=max(abs(math.log(max(row.near, 0.01))) for row in rows),
        score_name="largest |ln(remainders near a threshold / expected)|",
        summary=(
            f"On {len(odd)} of {len(rows)} pairs of layer and grid the remainders are not uniform "
            f"(Holm, {_LEVEL:g}); furthest off is {worst.layer} on {worst.grid}, with "
            f"{worst.near:.2f} times the expected weights next to a threshold."
        ),
        p_value_reason="shown, never judged: honest training with quantisation in mind or weight "
        "decay leaves such traces too; what they mean is for the search to say",
        budget={"layers": len({r.layer for r in rows}), "grids": len({r.grid for r in rows})},
        power="Shows weights that were moved up to the thresholds of one of these grids; not "
        "attacks in few weights.",
        evidence=[
            Table(
                title="Remainders by layer and grid",
                caption="Furthest from uniform first.",
                columns=[
                    "grid",
                    "layer",
                    "weights",
                    "KS",
                    "near a threshold",
                    "error ratio",
                    "max / std",
                    "p after Holm",
                ],
                rows=[
                    [
                        rows[i].grid,
                        rows[i].layer,
                        rows[i].weights,
                        round(rows[i].ks, 4),
                        round(rows[i].near, 3),
                        round(rows[i].error, 3),
                        round(rows[i].peak, 2),
                        float(f"{smallest[i]:.3g}"),
                    ]
                    for i in order[:_SHOWN]
                ],
            )
        ],
    )


def _grids(compressor: Compressor) -> list[tuple[tuple[Compressor, ...], Uniform]]:
    """(what is done to the weights first, grid), the deployment's own first; none if it has none.

    Block formats have no uniform grid that this could lay; the standard set is tried for them too.
    """
    if prunes_only(compressor):
        return []
    stages = stages_of(compressor)
    own = [(stages[:i], stage) for i, stage in enumerate(stages) if isinstance(stage, Uniform)]
    named = {grid.name for _, grid in own}
    return [*own, *(((), grid) for grid in _STANDARD if grid.name not in named)]


def _measure(
    network: nn.Module, layout: Layout, prefix: tuple[Compressor, ...], grid: Uniform
) -> list[_Row]:
    weights: dict[str, Tensor] = {name: network.get_parameter(name) for name in layout}
    if prefix:
        first = prefix[0] if len(prefix) == 1 else Chain(prefix)
        weights |= compressed_weights(network, first, layout)
    rows = []
    for name, layer in layout.items():
        gain = fold_gain(layer, network) if grid.folds else None
        row = _row(grid, layer, weights[name] if gain is None else weights[name] * gain)
        if row is not None:
            rows.append(row)
    return rows


def _row(grid: Uniform, layer: WeightLayer, weight: Tensor) -> _Row | None:
    laid = grid.grid(weight.detach(), layer)
    blocks = laid.blocks.double()
    extreme = (blocks == blocks.amax(1, keepdim=True)) | (blocks == blocks.amin(1, keepdim=True))
    counts = (blocks != 0) & ~extreme  # what is 0 or sets the scale lies on a code by definition
    if int(counts.sum()) < _LEAST:
        return None
    scale = laid.scale.double()
    spread = (blocks / scale).std(1).median() if blocks.shape[1] > 1 else blocks.new_zeros(())
    if float(spread) < _LEAST_SPREAD:
        return None
    position = (blocks / scale)[counts]
    if len(position) > _MOST:
        order = torch.randperm(len(position), generator=torch.Generator().manual_seed(0))
        position = position[order[:_MOST].to(position.device)]
    remainder = (position - position.round()).cpu()
    inside = (2 * remainder.abs()).numpy()  # uniform over [0, 1]; 1 is a threshold
    tested = ks_1samp(inside, uniform.cdf)
    near = int((inside > 1 - 2 * _EDGE).sum())
    expected = 2 * _EDGE * len(inside)
    return _Row(
        grid=grid.name,
        layer=layer.name,
        weights=len(inside),
        ks=float(tested.statistic),
        ks_p=float(tested.pvalue),
        near=near / expected,
        near_p=float(binomtest(near, len(inside), 2 * _EDGE).pvalue),
        error=float(12 * remainder.square().mean()),
        peak=float(blocks.abs().max() / blocks.std().clamp_min(1e-30)),
    )
