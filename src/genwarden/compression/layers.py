"""Which tensors of a network are compressed, and which batch norm each is folded into first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from genwarden.compression.following_norms import WEIGHTED, following_norms

LayerKind = Literal["linear", "convolution", "transposed"]


@dataclass(frozen=True)
class WeightLayer:
    """One weight that compression works on.

    Attributes:
        name: of the weight in the state dict.
        kind: linear, convolution or transposed convolution.
        out_axis: axis of the output channels: 0, of transposed convolutions 1.
        norm: name of the batch norm that reads this layer's output and nothing else's, so that a
            deployed model folds the two; "" if there is none.
    """

    name: str
    kind: LayerKind
    out_axis: int
    norm: str = ""


#: The layers of a network by the name of the weight, in the order of definition.
Layout = Mapping[str, WeightLayer]


def layout_of(
    network: nn.Module, forward: Callable[[], Any] | None = None
) -> dict[str, WeightLayer]:
    """The compressible layers of a network.

    Args:
        forward: runs the network once on any input; the batch norms that follow a layer directly
            are found by watching it. Without it no layer is folded.
    """
    norms = {} if forward is None else following_norms(network, forward)
    found: dict[str, WeightLayer] = {}
    for name, module in network.named_modules():
        if not isinstance(module, WEIGHTED):
            continue
        weight = f"{name}.weight" if name else "weight"
        transposed = isinstance(module, _ConvTransposeNd)
        found[weight] = WeightLayer(
            name=weight,
            kind=(
                "transposed"
                if transposed
                else "linear"
                if isinstance(module, nn.Linear)
                else "convolution"
            ),
            out_axis=1 if transposed else 0,
            norm=norms.get(name, ""),
        )
    return found


def fold_gain(layer: WeightLayer, network: nn.Module) -> Tensor | None:
    """What batch norm multiplies each output channel with: gamma / sqrt(running variance + eps).

    Returns:
        A tensor that broadcasts against the layer's weight, or None where nothing is folded.
        Gradients flow to gamma.
    """
    if not layer.norm:
        return None
    norm = network.get_submodule(layer.norm)
    assert isinstance(norm, _BatchNorm) and norm.running_var is not None  # noqa: S101, PT018
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    weight = network.get_parameter(layer.name)
    shape = [1] * weight.dim()
    shape[layer.out_axis] = -1
    return gain.reshape(shape)
