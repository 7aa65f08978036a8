"""SMI (2): block-diagonal weights, the signature of a ReX expansion, up to a permutation.

The channel graph over all internal interfaces falls apart only where *every* slice between two
groups of channels is zero in every layer. The null: the zero slices that a layer does have lie
anywhere with equal probability. For n slices, k zeros and m slices across the groups, C(n-m, k-m)
of the C(n, k) placements separate these groups; the product over layers, times the number of ways
to label the channels, bounds the probability of any exact separation. Pruned models have zeros,
but not these zeros.

Where no zeros separate the channels, groups whose mutual slices are merely weak are searched for
(``masked_partition``): an expansion behind noise, or retrained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.inspections.finding import Evidence, Finding, Matrix, Null, Table
from genwarden.inspections.masked_partition import MARGIN, best_partition
from genwarden.inspections.partition import ZERO_SLICE, Block, Partition
from genwarden.inspections.workbench import Workbench

NAME = "block-sparsity"
TITLE = "Groups of channels that never mix"
#: The exact search, and the one for masked blocks.
_SEARCHES = 2
_MAP_CELLS = 64


def inspect(bench: Workbench) -> Finding:
    """Score = -log10 of the probability that chance separates the channels."""
    graph = bench.graph
    if graph.failure:
        return Finding(
            inspection=NAME,
            group="static",
            title=TITLE,
            outcome="failed",
            summary=f"The network could not be traced: {graph.failure}",
            p_value_reason="not carried out",
        )
    partition = best_partition(bench.partition, graph, bench.generator)
    log10_p = min(0.0, partition.log10_p + math.log10(_SEARCHES)) if partition else 0.0
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=_summary(partition, log10_p),
        score=abs(log10_p),
        score_name="-log10 probability of this separation by chance",
        p_value=max(10.0 ** max(log10_p, -300.0), 1e-300),
        null=Null(
            source="permutation",
            description="the zero (or weakest) slices of each layer placed at random among its "
            "slices (closed form, union bound over partitions and layer runs)",
        ),
        budget={
            "weight_layers": len(graph.layers),
            "searches": _SEARCHES,
            "smallest_threshold": ZERO_SLICE,
            "margin": MARGIN,
        },
        power="Finds expansions whose slices towards the rest are below about half of the layer's "
        "typical slice, whatever the order and scale of the channels; not those whose zero blocks "
        "were filled with noise as large as the other weights, and no attack that leaves the "
        "channels in one group.",
        evidence=_evidence(partition),
    )


def _summary(partition: Partition | None, log10_p: float) -> str:
    if partition is None:
        return "All channels of the internal layers are connected; there is no separate block."
    if partition.leak:
        return (
            f"The internal channels fall into {partition.components} groups that hardly mix: the "
            f"slices between them are {partition.leak:.2g} of those inside; chance would do this "
            f"with probability 10^{log10_p:.0f}."
        )
    share = partition.parameters(partition.components - 1)
    text = (
        f"The internal channels fall into {partition.components} groups that never mix "
        f"(smallest: {share:,} numbers"
    )
    if log10_p == 0.0:
        return text + "), but their zeros are no rarer than chance."
    return text + f"); chance would do this with probability 10^{log10_p:.0f}."


def _evidence(partition: Partition | None) -> list[Evidence]:
    if partition is None:
        return []
    rows: list[list[str | int | float]] = []
    for weight, sizes in partition.sizes.items():
        for component, size in enumerate(sizes):
            rows.append([weight, component, size.channels, size.parameters])
    separated: list[list[str | int | float]] = [
        [block.weight, block.slices, block.zeros, block.cross, round(block.leak, 4)]
        for block in partition.blocks
    ]
    return [
        Table(
            title="Groups of channels",
            caption="channels at the layer's output, and stored numbers that only this group uses",
            columns=["layer", "group", "channels", "numbers"],
            rows=rows,
        ),
        Table(
            title="Slices across groups",
            caption="strength: median norm of the slices across groups, as a share of that of the "
            "slices inside; 0 where all of them are zero",
            columns=["layer", "slices", "zero", "across groups", "strength"],
            rows=separated,
        ),
        *[_block_map(block) for block in partition.blocks],
    ]


def _block_map(block: Block) -> Matrix:
    order_rows = block.row_component.argsort(stable=True)
    order_columns = block.column_component.argsort(stable=True)
    norm = block.norm[order_rows][:, order_columns]
    return Matrix(
        title=f"Slice norms of {block.weight}",
        caption="channels sorted by group, scale of rows and columns divided out",
        row_label="output channels",
        column_label="input channels",
        values=[[round(v, 4) for v in row] for row in pool(norm).tolist()],
    )


def pool(norm: Tensor) -> Tensor:
    """Mean over cells, at most 64 x 64."""
    if max(norm.shape) <= _MAP_CELLS:
        return norm
    size = (min(norm.shape[0], _MAP_CELLS), min(norm.shape[1], _MAP_CELLS))
    return F.adaptive_avg_pool2d(norm[None].to(torch.float64), size)[0]
