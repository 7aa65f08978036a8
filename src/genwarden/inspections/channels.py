"""Who is connected to whom: channel identities carried through the executed graph.

Every channel that a weight layer writes gets a number. The numbers travel through all operations up
to the next weight layer, so that reshapes, slices, skips and concatenations need no special cases:
operations that move elements are simply executed on the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from genwarden.inspections.graph import (
    MOVEMENT,
    POINTWISE,
    ExecutedGraph,
    Layer,
    Node,
    names,
)
from genwarden.models.protocol import LatentGenerator

#: Elements that belong to everyone: the latent, and channels of the sample.
SHARED = -1
#: Elements that do not depend on the latent (parameters, channels with gamma = 0).
CONSTANT = -2

_PER_CHANNEL = names(
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool2d "
    "_adaptive_avg_pool2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_bilinear2d_aa constant_pad_nd pad reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d grid_sampler_2d"
)


@dataclass(frozen=True)
class Slices:
    """Kernel slices of one weight layer between groups of channels that are one and the same.

    Attributes:
        layer: the layer.
        norm: Frobenius norm of each slice, ``(rows, columns)``, float64.
        possible: slices that the layer has at all (grouped convolutions lack some).
        rows, columns: channel identity per row and column; negative as ``SHARED``.
        out_identity, in_identity: identity per output and input channel of the stored weight.
    """

    layer: Layer
    norm: Tensor
    possible: Tensor
    rows: Tensor
    columns: Tensor
    out_identity: Tensor
    in_identity: Tensor


@dataclass(frozen=True)
class ChannelGraph:
    """Channel identities, numbered from 0 to ``count - 1``, and the slices between them."""

    count: int
    slices: tuple[Slices, ...]
    affine: dict[str, Tensor]
    """Identity per element of each batch-normalisation gamma and beta, by state-dict name."""


def channel_graph(graph: ExecutedGraph, generator: LatentGenerator) -> ChannelGraph:
    """Carry channel identities through a traced generator.

    Args:
        graph: from ``trace``, without failure.
        generator: supplies the weights.
    """
    walk = _Walk(graph, generator)
    for node in graph.nodes.values():
        walk.visit(node)
    merged = connected_components(walk.count, _pairs(walk.pairs))
    slices = tuple(_slices(use, walk.state, merged) for use in walk.uses)
    affine = {name: _rename(identity, merged) for name, identity in walk.affine.items()}
    return ChannelGraph(walk.count, slices, affine)


def connected_components(count: int, edges: Tensor) -> Tensor:
    """Smallest member of each node's component.

    Args:
        count: number of nodes.
        edges: ``(2, edges)``, undirected.

    Returns:
        ``(count,)``, int64.
    """
    label = torch.arange(count)
    while True:
        lowest = torch.minimum(label[edges[0]], label[edges[1]])
        updated = label.clone()
        updated.scatter_reduce_(0, edges[0], lowest, "amin")
        updated.scatter_reduce_(0, edges[1], lowest, "amin")
        updated = updated[updated]  # pointer jumping: long chains collapse in few rounds
        if torch.equal(updated, label):
            return label
        label = updated


def distinct(values: Tensor, dim: int | None = None) -> Tensor:
    """Sorted distinct values (or slices along ``dim``)."""
    result: Tensor = values.unique(dim=dim)
    return result


def numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted distinct values, and for each element the position of its value among them."""
    found: Tensor
    index: Tensor
    found, index = values.unique(return_inverse=True)
    return found, index


@dataclass(frozen=True)
class _Use:
    layer: Layer
    in_identity: Tensor
    out_identity: Tensor


class _Walk:
    """Identities of every node's elements; joins are collected and resolved at the end."""

    def __init__(self, graph: ExecutedGraph, generator: LatentGenerator) -> None:
        self.graph = graph
        self.state = {k: v.detach().cpu() for k, v in generator.state_dict().items()}
        self.layers = {layer.node: layer for layer in graph.layers}
        self.writes_sample = _layers_that_write_the_sample(graph)
        self.count = 0
        self.pairs: list[Tensor] = []
        self.uses: list[_Use] = []
        self.affine: dict[str, Tensor] = {}
        self.rows_of: dict[str, Tensor] = {}
        self.value: dict[str, Any] = {}

    def visit(self, node: Node) -> None:
        """Compute the identities of a node's output."""
        if node.op == "latent":
            self.value[node.name] = _full(SHARED, node.shape)
        elif node.name not in self.graph.on_path:
            self.value[node.name] = _full(CONSTANT, node.shape)
        elif node.name in self.layers:
            self.value[node.name] = self._layer(node, self.layers[node.name])
        elif self.graph.is_batch_norm(node):
            self.value[node.name] = self._batch_norm(node)
        elif node.op == "getitem":
            value = self.value[node.parents[0]]
            item = int(str(node.fx.args[1]))
            self.value[node.name] = value[item] if isinstance(value, list) else value
        elif node.op in MOVEMENT:
            self.value[node.name] = self._move(node)
        elif node.op in POINTWISE and all(isinstance(self.value[p], Tensor) for p in node.parents):
            self.value[node.name] = self._join([self.value[p] for p in node.parents], node.shape)
        elif self._keeps_channels(node):
            value = self.per_channel(self.value[node.parents[0]], 1)
            self.value[node.name] = _along(value, 1, node.shape or ())
        elif node.op in {"group_norm", "native_group_norm"}:
            self.value[node.name] = self._group_norm(node)
        elif node.op != "output":
            self.value[node.name] = self._mix(node)

    def per_channel(self, identity: Tensor, axis: int) -> Tensor:
        """Join all elements of each channel; returns one identity per channel."""
        rows = _thin(identity, keep=axis).movedim(axis, 0).flatten(1)
        first = rows.amax(1)
        self._pair(rows, first[:, None].expand_as(rows))
        return first

    def _layer(self, node: Node, layer: Layer) -> Tensor:
        data = self.value[layer.data]
        axis = data.ndim - 1 if layer.kind == "linear" else 1
        inputs = self.per_channel(data, axis)
        shape = node.shape or ()
        out_axis = len(shape) - 1 if layer.kind == "linear" else 1
        if layer.weight not in self.rows_of:
            self.rows_of[layer.weight] = self._fresh(shape[out_axis])
        outputs = self.rows_of[layer.weight]  # a weight used twice writes the same channels
        if node.name in self.writes_sample:
            outputs = torch.full_like(outputs, SHARED)
            self.rows_of[layer.weight] = outputs
        self.uses.append(_Use(layer, inputs, outputs))
        return _along(outputs, out_axis, shape)

    def _batch_norm(self, node: Node) -> Tensor:
        norm = self.graph.batch_norm_of(node)
        identity: Tensor = self.value[node.parents[0]]
        channels = self.per_channel(identity, 1)
        for name in (norm.gamma, norm.beta):
            if name is not None:
                self.affine[name] = channels
        if norm.gamma is None:
            return identity
        silent = self.state[norm.gamma] == 0
        shape = [-1 if axis == 1 else 1 for axis in range(identity.ndim)]
        return torch.where(silent.view(shape), CONSTANT, _thin(identity, keep=None)).expand(
            identity.shape
        )

    def _move(self, node: Node) -> Any:
        def numbers(item: fx.Node) -> Any:
            value = self.value[item.name]
            parts = value if isinstance(value, list) else [value]
            # not every kernel exists for integers; doubles hold these numbers exactly
            exact = [_thin(part, keep=None).double().expand(part.shape) for part in parts]
            return exact if isinstance(value, list) else exact[0]

        arguments: Any = fx.map_arg(node.fx.args, numbers)
        keywords: Any = fx.map_arg(node.fx.kwargs, numbers)
        if node.op in {"view", "_unsafe_view"}:  # expanded numbers have other strides
            reshaped: Tensor = arguments[0].reshape(arguments[1])
            return _whole(reshaped)
        moved = node.fx.target(*arguments, **keywords)  # type: ignore[operator]
        return [_whole(m) for m in moved] if isinstance(moved, list | tuple) else _whole(moved)

    def _keeps_channels(self, node: Node) -> bool:
        if node.op in _PER_CHANNEL:
            return node.shape is not None
        dims = node.fx.args[1] if node.op in {"mean", "sum"} and len(node.fx.args) > 1 else None
        source = self.graph.nodes[node.parents[0]].shape if node.parents else None
        if not isinstance(dims, list) or source is None or len(source) < 3:
            return False
        return not {int(d) % len(source) for d in dims} & {0, 1}

    def _group_norm(self, node: Node) -> Tensor:
        identity: Tensor = self.value[node.parents[0]]
        groups = int(str(node.fx.args[1 if node.op == "group_norm" else 6]))
        channels = self.per_channel(identity, 1)
        grouped = self.per_channel(channels.view(groups, -1), 0)
        channels = grouped.repeat_interleave(len(channels) // len(grouped))
        for name in node.parameters:
            self.affine[name] = channels
        return _along(channels, 1, identity.shape)

    def _mix(self, node: Node) -> Any:
        """An operation that is not known: everything that goes in is joined."""
        everything = [
            _thin(part, keep=None).flatten() for p in node.parents for part in _parts(self.value[p])
        ]
        together = self.per_channel(torch.cat(everything)[None], 0)
        value = node.fx.meta.get("val")
        if isinstance(value, list | tuple):
            shapes = [tuple(v.shape) if isinstance(v, Tensor) else () for v in value]
            return [_full(int(together), shape) for shape in shapes]
        return _full(int(together), node.shape)

    def _join(self, operands: list[Tensor], shape: tuple[int, ...] | None) -> Tensor:
        result = operands[0]
        for operand in operands[1:]:
            left, right = _broadcast_thin(result, operand)
            self._pair(left, right)
            result = torch.maximum(left, right)  # any member names the joined channel
        return result if shape is None else result.expand(shape)

    def _pair(self, left: Tensor, right: Tensor) -> None:
        both = (left >= 0) & (right >= 0) & (left != right)
        if both.any():
            self.pairs.append(distinct(torch.stack([left[both], right[both]]), dim=1))

    def _fresh(self, channels: int) -> Tensor:
        self.count += channels
        return torch.arange(self.count - channels, self.count)


def _layers_that_write_the_sample(graph: ExecutedGraph) -> set[str]:
    """Layers from which a path without another weight layer leads to the output."""
    layers = {layer.node for layer in graph.layers}
    found: set[str] = set()
    stack, seen = [graph.output], set()
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in layers:
            found.add(name)
        else:
            stack.extend(graph.nodes[name].parents)
    return found


def _slices(use: _Use, state: dict[str, Tensor], merged: Tensor) -> Slices:
    """Sum squared weights over kernel positions, and over channels that are one and the same."""
    layer, weight = use.layer, state[use.layer.weight].double().nan_to_num(1.0, 1.0, 1.0)
    square = weight.square().flatten(2).sum(2) if weight.ndim > 2 else weight.square()
    exists = torch.ones_like(square)
    square, exists = _dense(square, layer.groups), _dense(exists, layer.groups)
    if layer.kind == "conv_transpose" or layer.transposed:
        square, exists = square.T, exists.T
    out_identity = _rename(use.out_identity, merged)
    in_identity = _rename(use.in_identity, merged)
    varying = in_identity != CONSTANT
    rows, row_index = numbered(out_identity)
    columns, column_index = numbered(in_identity[varying])
    norm = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    possible = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for total, part in ((norm, square), (possible, exists)):
        by_column = torch.zeros(len(out_identity), len(columns), dtype=torch.float64)
        by_column.index_add_(1, column_index, part[:, varying])
        total.index_add_(0, row_index, by_column)
    return Slices(layer, norm.sqrt(), possible > 0, rows, columns, out_identity, in_identity)


def _dense(part: Tensor, groups: int) -> Tensor:
    """Grouped storage ``(a, b / groups)`` as ``(a, b)``, zero where no weight exists."""
    if groups == 1:
        return part
    whole: Tensor = torch.block_diag(*part.chunk(groups))
    return whole


def _rename(identity: Tensor, merged: Tensor) -> Tensor:
    if not len(merged):
        return identity
    return torch.where(identity >= 0, merged[identity.clamp(min=0)], identity)


def _pairs(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, dtype=torch.long)


def _parts(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def _full(identity: int, shape: tuple[int, ...] | None) -> Tensor:
    return torch.tensor(identity).expand(shape or ())


def _along(identity: Tensor, axis: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """One identity per channel, spread over a shape without using memory."""
    view = [-1 if a == axis else 1 for a in range(len(shape))]
    return identity.view(view).expand(tuple(shape))


def _thin(identity: Tensor, keep: int | None) -> Tensor:
    """Drop repeats along axes that are only expanded (stride 0)."""
    for axis in range(identity.ndim):
        if axis != keep and identity.stride(axis) == 0 and identity.shape[axis] > 1:
            identity = identity.narrow(axis, 0, 1)
    return identity


def _whole(moved: Tensor) -> Tensor:
    """Back to integers, repeats still without memory."""
    return _thin(moved, keep=None).long().expand(moved.shape)


def _broadcast_thin(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(left.shape, right.shape)
    left, right = left.expand(shape), right.expand(shape)
    for axis in range(left.ndim):
        if left.stride(axis) == 0 and right.stride(axis) == 0 and left.shape[axis] > 1:
            left, right = left.narrow(axis, 0, 1), right.narrow(axis, 0, 1)
    return left, right
