"""The executed graph: which operations really run between a latent and a sample.

Taken from ``torch.export`` (functionalised, so that in-place writes are visible as data flow),
never from module names: an attacker can name a module as he likes, but the operation that it runs
has ATen's name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from genwarden.engine.seeds import random_stream
from genwarden.models.protocol import LatentGenerator


def names(text: str) -> frozenset[str]:
    """The set of the words of a text."""
    return frozenset(text.split())


#: Operations that act on each element alone (several operands are broadcast against each other).
POINTWISE = names(
    "add sub rsub mul div neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt pow square "
    "reciprocal relu relu6 leaky_relu prelu _prelu_kernel elu selu celu gelu silu mish softplus "
    "hardtanh hardswish hardsigmoid clamp clamp_min clamp_max tanh sigmoid log_sigmoid erf sin "
    "cos atan where masked_fill maximum minimum lerp addcmul addcdiv to _to_copy type_as fill "
    "threshold round floor ceil trunc frac sign sgn heaviside fmod remainder floor_divide "
    "eq ne lt le gt ge isclose isnan logical_and logical_or logical_not logical_xor "
    "bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ dropout native_dropout "
    "fake_quantize_per_tensor_affine"
)

#: Operations that only move, copy or drop elements.
MOVEMENT = names(
    "view _unsafe_view reshape flatten unflatten slice select narrow permute transpose t expand "
    "unsqueeze squeeze clone alias detach contiguous cat stack split split_with_sizes chunk unbind "
    "flip roll repeat repeat_interleave pixel_shuffle pixel_unshuffle upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d select_scatter slice_scatter lift_fresh_copy"
)

#: Operations that compare or test values and return a truth value or a rank.
COMPARISONS = names(
    "eq ne lt le gt ge isclose isnan all any equal sign sgn heaviside argmax argmin argsort sort "
    "topk searchsorted bucketize"
)

#: Operations that read only the shape of their first operand.
SHAPE_ONLY = names(
    "ones_like zeros_like full_like empty_like rand_like randn_like randint_like new_zeros "
    "new_ones new_full new_empty sym_size"
)

LayerKind = Literal["linear", "conv", "conv_transpose"]
_LAYER_OPS: dict[str, LayerKind] = {
    "linear": "linear",
    "matmul": "linear",
    "mm": "linear",
    "addmm": "linear",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "conv_transpose1d": "conv_transpose",
    "conv_transpose2d": "conv_transpose",
    "conv_transpose3d": "conv_transpose",
}
_BATCH_NORMS = {"_native_batch_norm_legit_no_training", "batch_norm"}


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique in the graph.
        op: ATen name without namespace and overload (``conv_transpose2d``); ``latent``,
            ``parameter``, ``constant``, ``output`` and ``getitem`` for the rest.
        target: full name as torch prints it (``aten.conv_transpose2d.input``).
        parents: names of the nodes whose values it reads, in argument order.
        parameters: state-dict names that reach it directly or through latent-free arithmetic.
        shape: output shape for a batch of two latents; None for tuples and scalars.
        fx: the traced node, for arguments.
    """

    name: str
    op: str
    target: str
    parents: tuple[str, ...]
    parameters: tuple[str, ...]
    shape: tuple[int, ...] | None
    fx: fx.Node = field(repr=False, compare=False)


@dataclass(frozen=True)
class BatchNorm:
    """State-dict names of a batch normalisation; gamma and beta are None if it has none."""

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True)
class Layer:
    """A weight layer as executed.

    Attributes:
        node: name of the node.
        weight: state-dict name; linear ``(out, in)``, conv ``(out, in / groups, *kernel)``,
            conv_transpose ``(in, out / groups, *kernel)``.
        transposed: the weight of a linear layer is stored ``(in, out)``.
        data: name of the node whose value it transforms.
        batch_norm: the batch normalisation that directly follows, if any.
    """

    node: str
    kind: LayerKind
    weight: str
    bias: str | None
    transposed: bool
    groups: int
    data: str
    batch_norm: BatchNorm | None


@dataclass(frozen=True)
class ExecutedGraph:
    """Operations in the order of execution, and queries about paths.

    Attributes:
        nodes: by name, in the order of execution; only what the output depends on.
        latent: name of the latent's node.
        output: name of the output node.
        failure: why the network could not be traced; empty if it was.
        data_dependent: Python code of the network branches on values of the latent.
        without_gradient: whether ``none``, ``part`` or ``all`` of the operations run under
            ``torch.no_grad``.
    """

    nodes: dict[str, Node]
    latent: str = ""
    output: str = ""
    failure: str = ""
    data_dependent: bool = False
    without_gradient: Literal["none", "part", "all"] = "none"

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Names of the nodes that read a node."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for parent in dict.fromkeys(node.parents):
                found[parent].append(node.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def on_path(self) -> frozenset[str]:
        """Nodes whose values depend on the latent (the output depends on all nodes)."""

        def readers(name: str) -> list[str]:
            return [n for n in self.children[name] if self.nodes[n].op not in SHAPE_ONLY]

        return frozenset(_closure(self.latent, readers) | {self.latent} if self.latent else ())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Linear, convolution and transposed convolution layers, in the order of execution."""
        found = (self._layer(node) for node in self.nodes.values())
        return tuple(layer for layer in found if layer is not None)

    @cached_property
    def weighted(self) -> tuple[Node, ...]:
        """Nodes on a path from the latent that multiply it with stored weights (>= 2 axes).

        Wider than ``layers``: also bilinear forms, modulated convolutions, embeddings.
        """
        return tuple(
            node
            for node in self.nodes.values()
            if node.name in self.on_path
            and node.op not in POINTWISE | MOVEMENT | _BATCH_NORMS
            and any(len(self._parameter_shape(p)) >= 2 for p in node.parameters)
        )

    def ancestors(self, name: str) -> set[str]:
        """Every node whose value reaches ``name``, without itself."""
        return _closure(name, lambda n: self.nodes[n].parents)

    def descendants(self, name: str) -> set[str]:
        """Every node that the value of ``name`` reaches, without itself."""
        return _closure(name, lambda n: self.children[n])

    def is_truth_value(self, name: str) -> bool:
        """Whether a node's value is boolean."""
        value = self.nodes[name].fx.meta.get("val")
        return isinstance(value, Tensor) and value.dtype == torch.bool

    def has_path(self, start: str, end: str) -> bool:
        """Whether the value of ``start`` reaches ``end``."""
        return end in self.descendants(start)

    def roots(self, name: str) -> frozenset[str]:
        """Latent-dependent nodes that ``name`` is an elementwise function of.

        Walks up through pointwise operations and copies; ``leaky_relu(h)`` and ``h > 0`` have the
        same root.
        """
        found, stack, seen = set(), [name], set()
        while stack:
            node = self.nodes[stack.pop()]
            if node.name in seen or node.name not in self.on_path:
                continue
            seen.add(node.name)
            if node.op in POINTWISE or node.op in {"clone", "alias", "detach", "contiguous"}:
                stack.extend(node.parents)
            else:
                found.add(node.name)
        return frozenset(found)

    def batch_norm_of(self, node: Node) -> BatchNorm:
        """The state-dict names of a batch-normalisation node."""
        _, gamma, beta, mean, variance, *rest = node.fx.args
        eps = rest[-2] if node.op == "batch_norm" else rest[-1]
        return BatchNorm(
            gamma=self._parameter(gamma),
            beta=self._parameter(beta),
            mean=self._parameter(mean) or "",
            variance=self._parameter(variance) or "",
            eps=float(eps),  # type: ignore[arg-type]
        )

    def is_batch_norm(self, node: Node) -> bool:
        """Whether a node is a batch normalisation in evaluation mode."""
        return node.op in _BATCH_NORMS

    def _layer(self, node: Node) -> Layer | None:
        kind = _LAYER_OPS.get(node.op)
        if kind is None or node.name not in self.on_path:
            return None
        arguments = list(node.fx.args)
        if node.op == "addmm":
            arguments = [arguments[1], arguments[2], arguments[0]]
        data, weight = arguments[0], arguments[1]
        bias = arguments[2] if len(arguments) > 2 else node.fx.kwargs.get("bias")
        resolved = self._direct_weight(weight)
        if resolved is None or not isinstance(data, fx.Node) or data.name not in self.on_path:
            return None
        name, transposed = resolved
        # F.linear multiplies by the transposed weight, matmul by the weight as it is.
        if node.op in {"matmul", "mm", "addmm"}:
            transposed = not transposed
        if kind == "linear" and len(self._parameter_shape(name)) != 2:
            return None
        groups = arguments[6] if kind != "linear" and len(arguments) > 6 else 1
        return Layer(
            node=node.name,
            kind=kind,
            weight=name,
            bias=self._parameter(bias),
            transposed=transposed,
            groups=int(str(groups)),
            data=data.name,
            batch_norm=self._following_batch_norm(node.name),
        )

    def _direct_weight(self, argument: Any) -> tuple[str, bool] | None:
        """Name of the stored weight behind scalings and transpositions, or None if computed."""
        transposed = False
        while isinstance(argument, fx.Node):
            node = self.nodes[argument.name]
            if node.op == "parameter":
                return node.parameters[0], transposed
            if node.op in {"t", "transpose", "permute"} and len(node.shape or ()) == 2:
                transposed = not transposed
            elif not (
                node.op in {"mul", "div", "clone", "to", "_to_copy"} and len(node.parents) == 1
            ):
                return None
            argument = argument.args[0]
        return None

    def _following_batch_norm(self, name: str) -> BatchNorm | None:
        while len(readers := self.children[name]) == 1:
            node = self.nodes[readers[0]]
            if node.op in _BATCH_NORMS:
                return self.batch_norm_of(node)
            if node.op not in {"slice", "view", "clone", "unsqueeze", "squeeze"}:
                return None
            name = node.name
        return None

    def _parameter(self, argument: Any) -> str | None:
        if not isinstance(argument, fx.Node):
            return None
        node = self.nodes[argument.name]
        return node.parameters[0] if node.op == "parameter" else None

    def _parameter_shape(self, parameter: str) -> tuple[int, ...]:
        return self._shapes.get(parameter, ())

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        stored = (node for node in self.nodes.values() if node.op == "parameter")
        return {node.parameters[0]: node.shape or () for node in stored}


def trace(generator: LatentGenerator) -> ExecutedGraph:
    """Trace a generator on two latents of its own law.

    Args:
        generator: in evaluation mode.

    Returns:
        The graph; with ``failure`` set, and no nodes, if the network cannot be traced.
    """
    parameter = next(iter(generator.parameters()), None)
    z = generator.latent.sample(2, generator=random_stream(0, "trace"))
    z = z.to(parameter.device if parameter is not None else "cpu")
    try:
        with _quiet():
            exported = torch.export.export(generator, (z,), strict=False)
            without_gradient = _share_without_gradient(exported.graph_module)
            # An empty table decomposes nothing but functionalises: `y[mask] = x` becomes data flow.
            exported = exported.run_decompositions({})
    except Exception as error:
        # torch.export raises errors of many unrelated types; the finding will say "failed".
        reads = _reads_latent_values(generator, z)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return ExecutedGraph({}, failure=lines[0][:200], data_dependent=reads)
    return _convert(exported, without_gradient)


def _convert(
    exported: torch.export.ExportedProgram, without_gradient: Literal["none", "part", "all"]
) -> ExecutedGraph:
    signature = exported.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes: dict[str, Node] = {}
    latent, output = "", ""
    free: dict[str, tuple[str, ...]] = {}  # parameters behind latent-free nodes
    dependent: set[str] = set()
    op: str
    parameters: tuple[str, ...]
    for item in exported.graph.nodes:
        parents = tuple(parent.name for parent in item.all_input_nodes)
        if item.op == "placeholder":
            if item.name in stored:
                op, parameters = "parameter", (stored[item.name],)
            elif item.name in signature.user_inputs:
                op, parameters, latent = "latent", (), item.name
                dependent.add(item.name)
            else:
                op, parameters = "constant", ()
        elif item.op == "output":
            op, parameters, output = "output", (), item.name
        else:
            op = _short_name(item)
            parameters = tuple(dict.fromkeys(p for n in parents for p in free.get(n, ())))
        if dependent.intersection(parents):
            dependent.add(item.name)
        elif item.name not in dependent:
            free[item.name] = parameters
        nodes[item.name] = Node(
            item.name, op, str(item.target), parents, parameters, _shape(item), item
        )
    live = _closure(output, lambda n: nodes[n].parents) | {output, latent}
    return ExecutedGraph(
        {name: node for name, node in nodes.items() if name in live},
        latent=latent,
        output=output,
        without_gradient=without_gradient,
    )


def _short_name(item: fx.Node) -> str:
    if item.op == "get_attr":
        return "constant"
    if isinstance(item.target, torch._ops.OpOverload):
        return item.target._schema.name.rpartition("::")[2]
    name = getattr(item.target, "__name__", None) or getattr(item.target, "_name", None)
    return str(name or item.target)


def _shape(item: fx.Node) -> tuple[int, ...] | None:
    value = item.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None


def _closure(start: str, neighbours: Any) -> set[str]:
    seen: set[str] = set()
    stack = list(neighbours(start))
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack.extend(neighbours(name))
    return seen


def _share_without_gradient(module: fx.GraphModule) -> Literal["none", "part", "all"]:
    """How much of the network sits in ``no_grad`` blocks (before they are inlined)."""
    blocked = open_ = 0
    for item in module.graph.nodes:
        if item.op != "call_function":
            continue
        if "wrap_with_set_grad_enabled" in str(item.target) and item.args[0] is False:
            blocked += 1
        elif "getitem" not in str(item.target):
            open_ += 1
    if not blocked:
        return "none"
    return "part" if open_ else "all"


class _LatentReads(TorchDispatchMode):
    """Notes whether a value computed from the latent is read by Python code.

    A tensor computed from a marked tensor is marked; ``item`` and ``equal`` on one are reads.
    """

    def __init__(self, latent: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marked: dict[int, Tensor] = {id(latent): latent}  # kept alive: ids are not reused
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        tainted = any(id(t) in self.marked for t in _tensors((args, kwargs or {})))
        if tainted and func._schema.name in {"aten::_local_scalar_dense", "aten::equal"}:
            self.read = True
        result = func(*args, **(kwargs or {}))
        if tainted:
            self.marked.update({id(t): t for t in _tensors(result)})
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for item in tree:
            yield from _tensors(item)


@torch.no_grad()
def _reads_latent_values(generator: LatentGenerator, z: Tensor) -> bool:
    """Run the network once and watch whether Python reads values that derive from the latent."""
    watch = _LatentReads(z)
    try:
        with watch:
            generator(z)
    except Exception:
        # A network that does not even run is reported through its export failure.
        return watch.read
    return watch.read


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs, warns and prints partial graphs; the finding carries what matters."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
