"""Every runtime is tested on the layers at hand before it is believed, and refused if it is wrong.

Some kernels are wrong without a word: several 8-bit transposed convolutions return garbage at
certain shapes. A network run on such a kernel would look as if compression had changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.compression.backends.contract import Backend, LayerRun
from genwarden.compression.layers import WeightLayer, layout_of
from genwarden.compression.uniform import Uniform
from genwarden.errors import GenwardenError

#: Largest error of a right kernel, in steps of its output: 0.5 from rounding it, and a little for
#: the bias, which runtimes round, too, and for float16 or float32 scales.
TOLERANCE_LSB: Final = 1.0
#: Shape in space and stride: layers that agree in these run in the same kernel.
_GEOMETRY: Final = (
    "stride",
    "padding",
    "output_padding",
    "dilation",
    "groups",
    "surplus",
    "padding_mode",
)


@dataclass(frozen=True)
class LayerError:
    """How far a runtime was from the reference on one layer.

    Attributes:
        name: of the layer's weight (the first with this shape).
        shape: of the weight.
        error_lsb: largest error in steps of the output; None if the runtime leaves it in float.
    """

    name: str
    shape: tuple[int, ...]
    error_lsb: float | None

    @property
    def right(self) -> bool:
        """Within the tolerance (a NaN is not), or not in question."""
        return self.error_lsb is None or self.error_lsb <= TOLERANCE_LSB


@torch.no_grad()
def self_test(
    backend: Backend,
    network: nn.Module,
    forward: Callable[[], Any],
    compressor: Uniform,
) -> list[LayerError]:
    """One-layer models, one per distinct layer shape of a network, through a runtime.

    The reference is the layer in float with the weight that ``compressor`` makes and the input on
    the runtime's own grid, clipped to the ends of the runtime's output grid.

    Args:
        network: in evaluation mode, as it will be run (batch norm folded and dropped).
        forward: runs it on ordinary inputs; what reaches each layer is its test.

    Raises:
        GenwardenError: ``compress/backend-wrong``, naming the first wrong layer.
    """
    layout = layout_of(network)
    inputs = _first_inputs(network, layout, forward)
    chosen: dict[tuple[Any, ...], str] = {}
    for name, x in inputs.items():
        chosen.setdefault(_shape(network, layout[name], x), name)
    names = list(chosen.values())
    layers = [_alone(_owner(network, name), inputs[name]) for name in names]
    runs = backend.run_layers(layers, [inputs[name] for name in names], compressor)
    errors = [
        LayerError(
            name,
            tuple(network.get_parameter(name).shape),
            None if run is None else _error(layer, layout[name], inputs[name], run, compressor),
        )
        for name, layer, run in zip(names, layers, runs, strict=True)
    ]
    require_right(backend.name, errors)
    return errors


def require_right(backend: str, errors: list[LayerError]) -> None:
    """Refuse a runtime that is wrong on any layer.

    Raises:
        GenwardenError: ``compress/backend-wrong``.
    """
    wrong = [error for error in errors if not error.right]
    if wrong:
        first = wrong[0]
        raise GenwardenError(
            "compress/backend-wrong",
            f"{backend} computes {len(wrong)} of {len(errors)} distinct layers wrongly: "
            f"{first.name} {list(first.shape)} is {first.error_lsb:.1f} steps off "
            f"(right kernels: at most {TOLERANCE_LSB}).",
            "Do not deploy on it; report the layer to its makers, or use another runtime.",
        )


def _error(
    layer: nn.Module, described: WeightLayer, x: Tensor, run: LayerRun, compressor: Uniform
) -> float:
    weight = layer.get_parameter("weight")
    made = compressor({described.name: weight}, {described.name: described})[described.name]
    wanted: Tensor = functional_call(layer, {"weight": made}, (run.input_steps.rounded(x),))
    gap = (run.output - run.output_steps.clipped(wanted)).abs().max()
    return float(gap / run.output_steps.scale)


def _alone(layer: nn.Module, x: Tensor) -> nn.Module:
    """The layer; of a dense one on sequences without the bias, which exporters split off and add
    in float behind the kernel."""
    if not isinstance(layer, nn.Linear) or x.dim() == 2:
        return layer
    bare = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    bare.weight = layer.weight
    return bare.eval()


def _first_inputs(
    network: nn.Module, layout: Mapping[str, WeightLayer], forward: Callable[[], Any]
) -> dict[str, Tensor]:
    """What enters each layer the first time it runs; layers that do not run are left out."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in layout:

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen.setdefault(name, inputs[0].detach().clone())

        hooks.append(_owner(network, name).register_forward_pre_hook(keep))
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _owner(network: nn.Module, weight: str) -> nn.Module:
    return network.get_submodule(weight.rpartition(".")[0])


def _shape(network: nn.Module, layer: WeightLayer, x: Tensor) -> tuple[Any, ...]:
    owner = _owner(network, layer.name)
    geometry = tuple(str(getattr(owner, key, None)) for key in _GEOMETRY)
    weight = network.get_parameter(layer.name)
    return (layer.kind, tuple(weight.shape), tuple(x.shape[1:]), owner.bias is None, *geometry)
