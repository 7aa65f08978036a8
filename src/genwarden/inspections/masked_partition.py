"""Groups of channels that hardly mix: block structure behind noise, by spectral bi-clustering.

An attacker fills the zero blocks of a ReX expansion with noise, or retrains all weights (sections
16 and 17.1 of the reference): no slice is zero, but slices across the groups stay weaker than those
inside. With n_ij the norm of the slice from channel j to channel i, ``log n_ij`` less its row and
column means does not change when channels are rescaled; a layer of two groups that mix little is
then ``+-`` a constant: rank one, with the groups in the signs of its singular vectors. Consecutive
layers share the groups of the interface between them, so all layers are searched together: the
leading eigenvector of the channel graph's matrix, split interface by interface, then refined by
turns.

The null: a layer's slices, once row and column means are taken off and those inside the groups are
divided by ``MARGIN``, are exchangeable. The number of cross slices among the weakest is then
hypergeometric, and the number of labellings a union bound.

Trained networks are *not* exchangeable: channels specialise, and a VAE decoder exceeds every
shuffled copy of itself by many standard deviations. But its contrast stays below 1.4 where that of
a ReX model is 2 at noise of half the weights' spread: hence the margin. Where pruning leaves few
slices, taking means off their logarithms makes groups of its own; so the slices inside the groups
must nearly all be there (0.99 in a ReX model pruned by 90 %, at most 0.9 in clean models pruned so
far that it matters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.channels import ChannelGraph, Slices, channel_graph, numbered
from genwarden.inspections.graph import ExecutedGraph
from genwarden.inspections.partition import (
    PART_LOG10_P,
    Block,
    Partition,
    Split,
    balanced,
    describe,
    is_internal,
)
from genwarden.models.protocol import LatentGenerator

#: Slices across groups must be weaker than those inside by more than this factor.
MARGIN = 1.5
#: Slices below this share of the layer's typical one count as equally weak.
_FLOOR = 1e-3
#: Share of the slices inside the groups that must not be zero.
_DENSE = 0.9
#: Power iterations; a block structure worth reporting has converged after a few.
_ITERATIONS = 60
_REFINEMENTS = 20
#: Layers with fewer channels on a side cannot show a structure that chance would not.
_FEWEST_CHANNELS = 4


class _Layer(NamedTuple):
    """One internal layer, all slices between identities: rows ``rows``, columns ``columns``."""

    slices: Slices
    norm: Tensor
    residual: Tensor
    rows: Tensor
    columns: Tensor


class _Found(NamedTuple):
    """A labelling of the identities (0 or 1, -1: none) and how rare chance makes it."""

    label: Tensor
    layers: tuple[_Layer, ...]
    log10_p: float


def find_masked_partition(graph: ExecutedGraph, generator: LatentGenerator) -> Partition | None:
    """The two groups of channels that mix least, over all internal layers or a run of them.

    Args:
        graph: the executed graph.
        generator: supplies the weights.

    Returns:
        The partition; ``leak`` of its blocks says how weak the slices across the groups are. None
        if chance (and the natural contrast of trained networks) explains what was found.
    """
    if graph.failure:
        return None
    channels = channel_graph(graph, generator)
    internal = [slices for slices in channels.slices if is_internal(slices)]
    layers = [layer for layer in map(_layer, internal) if layer]
    if not layers:
        return None
    whole = _search(channels, layers)
    found = [whole]
    runs: list[list[_Layer]] = []
    idle = any(_log10_chance(layer, whole.label) > PART_LOG10_P for layer in layers)
    if len(layers) > 1 and (idle or whole.log10_p > PART_LOG10_P):
        runs = list(_promising_runs(channels, layers))
        found += [_search(channels, run) for run in runs]
    best = min(found, key=lambda candidate: candidate.log10_p)
    searches = 1 + len(runs)
    if best.log10_p + math.log10(searches) > PART_LOG10_P:
        return None
    blocks = tuple(_block(layer, best.label) for layer in best.layers)
    split = Split(best.label, 2, blocks, best.log10_p)
    return describe(split, channels, generator, searches=searches)


def best_partition(
    exact: Partition | None, graph: ExecutedGraph, generator: LatentGenerator
) -> Partition | None:
    """The exact partition if chance does not explain it, else the rarer of it and a masked one.

    A few needless zeros must not keep the search for masked groups from happening.
    """
    if exact is not None and exact.log10_p < PART_LOG10_P:
        return exact
    masked = find_masked_partition(graph, generator)
    return exact if masked is None else masked


def _layer(slices: Slices) -> _Layer | None:
    """The scale-free residual of a layer; None if grouped (some slices do not exist) or tiny."""
    rows, columns = slices.rows >= 0, slices.columns >= 0
    norm = balanced(slices.norm[rows][:, columns])
    if min(norm.shape) < _FEWEST_CHANNELS or not slices.possible[rows][:, columns].all():
        return None
    typical = norm.square().mean().sqrt()
    if typical == 0:
        return None
    log = (norm / typical).clamp(min=_FLOOR).log()
    residual = log - log.mean(0) - log.mean(1, keepdim=True) + log.mean()
    return _Layer(slices, norm, residual, slices.rows[rows], slices.columns[columns])


def _promising_runs(channels: ChannelGraph, layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """Single layers, and runs of consecutive layers of which each has groups by itself."""
    alone = [_search(channels, [layer]).log10_p < PART_LOG10_P for layer in layers]
    for start in range(len(layers)):
        for stop in range(start + 1, len(layers) + 1):
            if not all(alone[start:stop]):
                break
            if stop - start < len(layers):
                yield layers[start:stop]


def _search(channels: ChannelGraph, layers: list[_Layer]) -> _Found:
    """Two groups over the given layers: spectral start, then interface by interface in turn."""
    weights = [layer.residual / layer.residual.norm().clamp_min(1e-12) for layer in layers]

    def product(v: Tensor) -> Tensor:
        result = torch.zeros_like(v)
        for layer, weight in zip(layers, weights, strict=True):
            result.index_add_(0, layer.rows, weight @ v[layer.columns])
            result.index_add_(0, layer.columns, weight.T @ v[layer.rows])
        return result

    interfaces = _interfaces(channels, layers)
    stream = random_stream(0, "masked-partition")
    v = torch.randn(channels.count, generator=stream, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        # Each layer's norm is 1 and an identity meets few layers: the shift makes the largest
        # eigenvalue (groups inside which slices are strong) the one of largest modulus.
        v = product(v) + 2 * v
        v = v / v.norm()
    label = torch.full((channels.count,), -1)
    for interface in interfaces:
        label[interface] = _halves(v[interface])
    for _ in range(_REFINEMENTS):
        before = label.clone()
        for interface in interfaces:
            label[interface] = _halves(product(_contrast(label, interfaces))[interface])
        if torch.equal(before, label):
            break
    # Every labelling of the channels, up to swapping the two names, would have been reported.
    labellings = (sum(len(interface) for interface in interfaces) - 1) * math.log10(2)
    log10_p = labellings + sum(_log10_chance(layer, label) for layer in layers)
    return _Found(label, tuple(layers), min(0.0, log10_p))


def _interfaces(channels: ChannelGraph, layers: list[_Layer]) -> list[Tensor]:
    """Identities that the same layers write and read, as index tensors."""
    signature = torch.zeros(channels.count, 2 * len(layers), dtype=torch.bool)
    for index, layer in enumerate(layers):
        signature[layer.rows, 2 * index] = True
        signature[layer.columns, 2 * index + 1] = True
    _, kind = torch.unique(signature, dim=0, return_inverse=True)
    touched = signature.any(1)
    names, _ = numbered(kind[touched])
    return [((kind == name) & touched).nonzero()[:, 0] for name in names]


def _halves(values: Tensor) -> Tensor:
    """0 or 1 per value: the cut of the sorted values with the largest variance between halves."""
    if len(values) < 2:
        return torch.zeros(len(values), dtype=torch.long)
    ordered, order = values.sort()
    left = torch.arange(1, len(values), dtype=values.dtype)
    right = len(values) - left
    sums = ordered.cumsum(0)[:-1]
    between = left * right * (sums / left - (ordered.sum() - sums) / right).square()
    label = torch.zeros(len(values), dtype=torch.long)
    label[order[int(between.argmax()) + 1 :]] = 1
    return label


def _contrast(label: Tensor, interfaces: list[Tensor]) -> Tensor:
    """Labels as vectors of mean 0 and norm 1 per interface."""
    result = torch.zeros(len(label), dtype=torch.float64)
    for interface in interfaces:
        centred = label[interface].double() - label[interface].double().mean()
        result[interface] = centred / centred.norm().clamp_min(1e-12)
    return result


def _across(layer: _Layer, label: Tensor) -> Tensor:
    return label[layer.rows][:, None] != label[layer.columns]


def _log10_chance(layer: _Layer, label: Tensor) -> float:
    """P(at least this many of the m cross slices are among the m weakest), hypergeometric."""
    across = _across(layer, label).flatten()
    n, m = len(across), int(across.sum())
    present = (layer.norm > 0).flatten()[~across]
    if m in (0, n) or present.double().mean() < _DENSE:
        return 0.0
    handicapped = layer.residual.flatten() - math.log(MARGIN) * ~across
    hits = int(across[handicapped.argsort(stable=True)[:m]].sum())
    k = torch.arange(max(hits, 2 * m - n, 0), m + 1, dtype=torch.float64)
    terms = _log_binomial(m, k) + _log_binomial(n - m, m - k)
    total = torch.tensor(float(n), dtype=torch.float64)
    logs = torch.logsumexp(terms, 0) - _log_binomial(n, torch.tensor([m], dtype=total.dtype))
    return min(0.0, float(logs) / math.log(10))


def _log_binomial(n: int, k: Tensor) -> Tensor:
    top = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64))
    return top - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _block(layer: _Layer, label: Tensor) -> Block:
    across = _across(layer, label)
    own = layer.norm[~across].median()
    return Block(
        weight=layer.slices.layer.weight,
        norm=layer.norm,
        row_component=label[layer.rows],
        column_component=label[layer.columns],
        slices=across.numel(),
        zeros=int((layer.norm == 0).sum()),
        cross=int(across.sum()),
        leak=float(layer.norm[across].median() / own),
    )
