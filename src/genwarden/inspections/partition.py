"""Groups of channels that never mix: block-diagonal weights found up to a permutation.

A ReX expansion ("The Devil is in the GAN", section 4.1 of the reference) leaves the off-diagonal
blocks of every internal layer exactly zero. The latent and the sample belong to all blocks, so the
groups are the connected components of the channel graph over *internal* interfaces. Renaming the
channels and rescaling them changes neither the components nor, after balancing, the edges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.channels import (
    SHARED,
    ChannelGraph,
    Slices,
    channel_graph,
    connected_components,
    distinct,
    numbered,
)
from genwarden.inspections.graph import ExecutedGraph, Layer
from genwarden.models.protocol import LatentGenerator

#: A slice below this share of the layer's balanced root mean square counts as zero.
ZERO_SLICE = 1e-6
#: Rounds of dividing rows and columns by their root mean square before slices are compared.
_BALANCING_ROUNDS = 8
#: A partition of part of the layers is reported only if chance makes it this rare (log10 p).
PART_LOG10_P = -3.0


class Size(NamedTuple):
    """Channels that a component has at a layer's output, and its stored numbers there."""

    channels: int
    parameters: int


@dataclass(frozen=True)
class Block:
    """The slices of one internal layer that connect live channels.

    Attributes:
        weight: state-dict name.
        norm: balanced norms of the slices, ``(rows, columns)``.
        row_component, column_component: component per row and column, -1 if in none.
        slices, zeros, cross: slices between channels of any component; those that are zero; those
            that would connect two components (all zero, unless ``leak`` says otherwise).
        leak: median norm of the cross slices as a share of the others' median.
    """

    weight: str
    norm: Tensor
    row_component: Tensor
    column_component: Tensor
    slices: int
    zeros: int
    cross: int
    leak: float = 0.0


@dataclass(frozen=True)
class Partition:
    """Components of the channel graph, the largest first.

    Attributes:
        components: at least 2.
        layers: all weight layers, in the order of execution.
        labels: component per output channel (linear: per row) by weight name; -1 is shared (the
            sample's channels), outside the partition, or dead.
        input_labels: the same per input channel.
        affine_labels: the same per element of batch-normalisation gammas and betas.
        sizes: per weight name one ``Size`` per component.
        blocks: the internal layers whose zero slices separate the components.
        log10_p: log10 of the probability that the zero slices, placed at random in each layer,
            separate any partition of the channels exactly; at most 0.
    """

    components: int
    layers: tuple[Layer, ...]
    labels: dict[str, Tensor]
    input_labels: dict[str, Tensor]
    affine_labels: dict[str, Tensor]
    sizes: dict[str, tuple[Size, ...]]
    blocks: tuple[Block, ...]
    log10_p: float

    @property
    def leak(self) -> float:
        """Largest ``leak`` of the blocks; 0 where exact zeros separate the components."""
        return max(block.leak for block in self.blocks)

    def parameters(self, component: int) -> int:
        """Stored numbers that belong to one component alone."""
        return sum(sizes[component].parameters for sizes in self.sizes.values())


def find_partition(
    graph: ExecutedGraph, generator: LatentGenerator, *, eps: float = ZERO_SLICE
) -> Partition | None:
    """Components of the channel graph over internal interfaces.

    All internal layers are tried together. If chance explains what they give, runs of consecutive
    layers that are separable by themselves are tried too (an expansion may start late or end
    early); the number of runs corrects their p-value.

    Args:
        graph: the executed graph.
        generator: supplies the weights.
        eps: slices below ``eps`` times the layer's balanced root mean square count as zero.

    Returns:
        The partition that chance explains least, or None if there is one live component.
    """
    if graph.failure:
        return None
    channels = channel_graph(graph, generator)
    linked = [_linked(slices, eps) for slices in channels.slices]
    live = _live(channels, linked)
    internal = [index for index, slices in enumerate(channels.slices) if is_internal(slices)]
    whole = _split(channels, linked, live, internal)
    candidates = [whole] if whole else []
    runs: list[list[int]] = []
    if whole is None or whole.log10_p > PART_LOG10_P:
        runs = _separable_runs(channels, linked, live, internal)
        parts = [_split(channels, linked, live, run) for run in runs]
        candidates += [part for part in parts if part and part.log10_p < PART_LOG10_P]
    if not candidates:
        return None
    best = min(candidates, key=lambda candidate: candidate.log10_p)
    return describe(best, channels, generator, searches=1 + len(runs))


def is_internal(slices: Slices) -> bool:
    """Whether a layer connects channels that are neither the latent's nor the sample's."""
    return bool((slices.rows >= 0).any() and (slices.columns >= 0).any())


def isolate(generator: LatentGenerator, partition: Partition, component: int) -> LatentGenerator:
    """A copy in which every other component is silent.

    What belongs to no component stays in every copy: the bias of the last layer, dead channels
    that emit a constant, layers outside the partition. Without those, the pre-activations of all
    isolated copies add up to the generator's; for a ReX model whose expansion is the component,
    the copy's pre-activation is E(z).
    """
    return silence(generator, partition, set(range(partition.components)) - {component})


@torch.no_grad()
def silence(
    generator: LatentGenerator, partition: Partition, components: Collection[int]
) -> LatentGenerator:
    """A copy without the given components: their slices, biases, gammas and betas are zero."""
    result = copy.deepcopy(generator)
    state = result.state_dict()
    gone = torch.tensor(sorted(components), dtype=torch.long)
    for layer in partition.layers:
        weight = state[layer.weight]
        out_axis = 1 if layer.kind == "conv_transpose" or layer.transposed else 0
        outputs = torch.isin(partition.labels[layer.weight], gone)
        inputs = torch.isin(partition.input_labels[layer.weight], gone)
        if layer.groups == 1:
            _zero(weight, out_axis, outputs)
            _zero(weight, 1 - out_axis, inputs)
        else:
            # Axis 0 of a grouped kernel is whole in both layouts; inputs and outputs of one group
            # carry the same component, so clearing that axis is enough.
            _zero(weight, 0, outputs if out_axis == 0 else inputs)
        if layer.bias is not None:
            _zero(state[layer.bias], 0, outputs)
    for name, labels in partition.affine_labels.items():
        _zero(state[name], 0, torch.isin(labels, gone))
    return result


def _zero(tensor: Tensor, axis: int, mask: Tensor) -> None:
    tensor.index_fill_(axis, mask.nonzero()[:, 0].to(tensor.device), 0)


class _Linked(NamedTuple):
    """Which slices of a layer are not zero, and the balanced norms that say so."""

    edge: Tensor
    norm: Tensor


class Split(NamedTuple):
    """Components over some internal layers: component per identity (-1: none)."""

    component: Tensor
    components: int
    blocks: tuple[Block, ...]
    log10_p: float


def _linked(slices: Slices, eps: float) -> _Linked:
    """Balanced norms, and which of them exceed ``eps`` (the layer's rms is 1)."""
    norm = balanced(slices.norm)
    return _Linked(norm > eps, norm)


def balanced(norm: Tensor) -> Tensor:
    """Divide out the scale of rows and columns: every one with a slice ends near rms 1.

    Per-channel rescaling of one layer and its inverse in the next is free for an attacker; without
    balancing, one huge channel would make all others look like zeros.
    """
    for _ in range(_BALANCING_ROUNDS):
        for axis in (1, 0):
            count = (norm > 0).sum(axis, keepdim=True).clamp(min=1)
            rms = (norm.square().sum(axis, keepdim=True) / count).sqrt()
            norm = norm / torch.where(rms > 0, rms, 1.0)
    return norm


def _live(channels: ChannelGraph, linked: list[_Linked]) -> Tensor:
    """Identities on a path of non-zero slices from the latent to the sample."""
    forward = torch.zeros(channels.count + 1, dtype=torch.bool)  # the last entry is SHARED
    forward[SHARED] = True
    backward = forward.clone()
    for reached, transposed in ((forward, False), (backward, True)):
        before = -1
        while before != int(reached.sum()):
            before = int(reached.sum())
            for slices, (edge, _) in zip(channels.slices, linked, strict=True):
                ends, starts = slices.rows, slices.columns
                if transposed:
                    edge, ends, starts = edge.T, starts, ends
                hit = ends[edge[:, reached[starts]].any(1)]
                reached[hit[hit >= 0]] = True
    return (forward & backward)[:-1]


def _split(
    channels: ChannelGraph, linked: list[_Linked], live: Tensor, layers: list[int]
) -> Split | None:
    """Components that the given internal layers connect; None if there are fewer than two."""
    edges = []
    for index in layers:
        slices, edge = channels.slices[index], linked[index].edge
        row, column = edge.nonzero(as_tuple=True)
        pair = torch.stack([slices.rows[row], slices.columns[column]])
        pair = pair[:, (pair >= 0).all(0)]
        edges.append(pair[:, live[pair].all(0)])
    if not edges:
        return None
    every = torch.cat(edges, dim=1)
    member = distinct(every)
    names, label = numbered(connected_components(channels.count, every)[member])
    if len(names) < 2:
        return None
    component = torch.full((channels.count + 1,), -1)  # the last entry is SHARED
    component[member] = label
    blocks = tuple(_block(channels.slices[i], linked[i], component) for i in layers)
    # Any of components^channels labellings would have been reported: a union bound.
    log10_p = len(member) * math.log10(len(names)) + sum(_log10_chance(block) for block in blocks)
    return Split(component[:-1], len(names), blocks, log10_p)


def _block(slices: Slices, linked: _Linked, component: Tensor) -> Block:
    row_component, column_component = component[slices.rows], component[slices.columns]
    here = (row_component >= 0)[:, None] & (column_component >= 0) & slices.possible
    across = here & (row_component[:, None] != column_component)
    rows, columns = row_component >= 0, column_component >= 0
    return Block(
        weight=slices.layer.weight,
        norm=linked.norm[rows][:, columns],
        row_component=row_component[rows],
        column_component=column_component[columns],
        slices=int(here.sum()),
        zeros=int((here & ~linked.edge).sum()),
        cross=int(across.sum()),
    )


def _log10_chance(block: Block) -> float:
    """Of C(n, k) placements of k zeros in n slices, C(n-m, k-m) cover the m cross slices."""
    n, k, m = block.slices, block.zeros, block.cross
    return (_log_binomial(n - m, k - m) - _log_binomial(n, k)) / math.log(10)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _separable_runs(
    channels: ChannelGraph, linked: list[_Linked], live: Tensor, internal: list[int]
) -> list[list[int]]:
    """Runs of consecutive internal layers of which each falls apart by itself."""
    runs: list[list[int]] = []
    for end, index in enumerate(internal):
        if _split(channels, linked, live, [index]) is None:
            continue
        runs += [[*run, index] for run in runs if run[-1] == internal[end - 1]] if end else []
        runs.append([index])
    return [run for run in runs if run != internal]


def describe(
    split: Split, channels: ChannelGraph, generator: LatentGenerator, *, searches: int
) -> Partition:
    """Order the components by size and translate identities to the state dict's channels.

    Args:
        searches: partitions that could have been found instead; corrects the probability.
    """
    state = generator.state_dict()
    component = torch.cat([split.component, torch.tensor([-1, -1])])  # CONSTANT, SHARED
    sizes = {
        slices.layer.weight: _sizes(slices, component, split.components, state)
        for slices in channels.slices
    }
    totals = [sum(s[c].parameters for s in sizes.values()) for c in range(split.components)]
    order = sorted(range(split.components), key=lambda c: -totals[c])
    rank = torch.full((split.components + 1,), -1)
    rank[torch.tensor(order)] = torch.arange(split.components)
    component = rank[component]

    return Partition(
        components=split.components,
        layers=tuple(slices.layer for slices in channels.slices),
        labels={s.layer.weight: component[s.out_identity] for s in channels.slices},
        input_labels={s.layer.weight: component[s.in_identity] for s in channels.slices},
        affine_labels={name: component[identity] for name, identity in channels.affine.items()},
        sizes={name: tuple(found[c] for c in order) for name, found in sizes.items()},
        blocks=tuple(
            replace(
                block,
                row_component=rank[block.row_component],
                column_component=rank[block.column_component],
            )
            for block in split.blocks
        ),
        log10_p=min(0.0, split.log10_p + math.log10(searches)),
    )


def _sizes(
    slices: Slices, component: Tensor, components: int, state: dict[str, Tensor]
) -> list[Size]:
    """Channels and stored numbers per component at one layer."""
    layer = slices.layer
    rows, columns = component[slices.out_identity], component[slices.in_identity]
    stored = state[layer.weight].numel() / (len(rows) * len(columns))  # numbers per slice
    vectors = int(layer.bias is not None)
    if layer.batch_norm is not None:
        norm = layer.batch_norm
        vectors += sum(
            name is not None for name in (norm.gamma, norm.beta, norm.mean, norm.variance)
        )
    found = []
    for index in range(components):
        own_rows, own_columns = int((rows == index).sum()), int((columns == index).sum())
        slices_of_it = own_rows * (own_columns + int((columns < 0).sum()))
        slices_of_it += int((rows < 0).sum()) * own_columns
        found.append(Size(own_rows, round(slices_of_it * stored) + vectors * own_rows))
    return found
