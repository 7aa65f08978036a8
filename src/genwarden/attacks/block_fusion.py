"""Fusing new units into a run of layers as block matrices (ReX, section IV-C; table in 4.1 of the
reference): ``[W ; W*]`` in the first layer, ``blockdiag(W, W*)`` inside, ``[W , W*]`` in the last.

The networks are chains: dense or convolution layers, each with its batch normalisation, and
``channels`` that name the width of every interface between two of them. New units are given as a
network of the same class (:func:`expansion_for`) whose interfaces inside the run have the new
widths and whose other interfaces have the old ones; its layers outside the run are not used.

With the run over all layers, the fused network's output before the last activation is the sum of
both: ``G_pre(z) + E(z)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def chain(network: LatentGenerator) -> list[str]:
    """Names of the dense and convolution layers before the last activation, in order.

    Raises:
        TypeError: the network is not a chain with one width per interface.
    """
    names = []
    for name, layer in network.named_layers().items():
        if name in network.after_activation:
            continue
        if isinstance(layer, _WEIGHTED):
            names.append(name)
        elif not (isinstance(layer, _NORMS) and names):
            raise TypeError(f"no fusion rule for {type(layer).__name__}")
    if len(network.settings().get("channels", [])) != len(names) - 1:
        raise TypeError(f"{type(network).__name__} is not a chain of layers")
    return names


def layer_run(network: LatentGenerator, first: str = "", last: str = "") -> range:
    """Positions in :func:`chain` of the layers ``first`` to ``last``; empty names mean the ends.

    Raises:
        GenwardenError: ``attack/unknown-layer`` or ``attack/layer-run``.
    """
    names = chain(network)
    for name in (first, last):
        if name and name not in names:
            raise GenwardenError(
                "attack/unknown-layer",
                f"The model has no layer {name!r} that can be widened.",
                f"It has: {', '.join(names)}.",
            )
    start = names.index(first) if first else 0
    stop = names.index(last) if last else len(names) - 1
    if stop <= start:
        raise GenwardenError(
            "attack/layer-run",
            f"No interface lies between {names[start]!r} and {names[stop]!r}.",
            f"Name two different layers in this order: {', '.join(names)}.",
        )
    return range(start, stop + 1)


def expansion_for(network: LatentGenerator, run: range, width: float) -> LatentGenerator:
    """A fresh network whose layers in ``run`` have the shapes of the new blocks.

    Args:
        run: from :func:`layer_run`.
        width: new units per old unit, rounded, at least one per interface.
    """
    settings = network.settings()
    settings["channels"] = [
        max(1, round(width * old)) if _inside(interface, run) else old
        for interface, old in enumerate(settings["channels"])
    ]
    return type(network)(**settings)


def new_weights(expansion: LatentGenerator, run: range) -> list[nn.Parameter]:
    """What trains in an expansion: kernels and biases in the run, gamma and beta inside it."""
    layers = expansion.named_layers()
    return [
        weight
        for name, place in _places(expansion).items()
        if place in run and not (isinstance(layers[name], _NORMS) and place == run[-1])
        for weight in layers[name].parameters()
    ]


def joined(
    original: LatentGenerator, new: Mapping[str, Tensor], run: range | None = None
) -> dict[str, Tensor]:
    """State dict of the fused network, differentiable in the new blocks.

    Args:
        original: its weights are constants; layers outside the run, and the batch normalisation
            behind the run's last layer, stay as they are.
        new: state dict (or parameters) of the expansion.
        run: from :func:`layer_run`; None for all layers.
    """
    run = run or layer_run(original)
    layers, state = original.named_layers(), dict(original.state_dict())
    for name, place in _places(original).items():
        layer = layers[name]
        weight, bias = f"{name}.weight", f"{name}.bias"
        first, last = place == run[0], place == run[-1]
        if place not in run or (isinstance(layer, _NORMS) and last):
            continue
        if isinstance(layer, _NORMS):
            for key in (f"{name}.{part}" for part in layer.state_dict()):
                old = state[key]
                state[key] = torch.cat([old, new[key]]) if old.ndim else torch.zeros_like(old)
            continue
        out_axis = 1 if isinstance(layer, _TRANSPOSED) else 0
        if first or last:
            axis = out_axis if first else 1 - out_axis
            state[weight] = torch.cat([state[weight], new[weight]], dim=axis)
        else:
            state[weight] = _block_diagonal(state[weight], new[weight])
        if bias in state:
            old = state[bias]
            state[bias] = old + new[bias] if last else torch.cat([old, new[bias]])
    return state


def widened(
    original: LatentGenerator, expansion: LatentGenerator, run: range | None = None
) -> LatentGenerator:
    """A fresh network with the fused widths."""
    run = run or layer_run(original)
    settings = original.settings()
    extra = expansion.settings()["channels"]
    settings["channels"] = [
        old + extra[interface] if _inside(interface, run) else old
        for interface, old in enumerate(settings["channels"])
    ]
    return type(original)(**settings).eval()


@torch.no_grad()
def fuse(
    original: LatentGenerator, expansion: LatentGenerator, run: range | None = None
) -> LatentGenerator:
    """One wider network of the same architecture that computes both and adds them.

    Args:
        run: from :func:`layer_run`; None for all layers.

    Raises:
        TypeError: the two are of different architectures or hold a layer without a fusion rule.
    """
    if type(original) is not type(expansion):
        raise TypeError("original and expansion must be of one architecture")
    wide = widened(original, expansion, run)
    wide.load_state_dict(joined(original, expansion.state_dict(), run))
    return wide.requires_grad_(False)


def _inside(interface: int, run: range) -> bool:
    """Whether the output of the ``interface``-th layer is widened."""
    return run[0] <= interface < run[-1]


def _places(network: LatentGenerator) -> dict[str, int]:
    """Position in the chain of every layer; a batch normalisation has that of its layer."""
    names, place, places = chain(network), -1, {}
    for name in network.named_layers():
        if name in network.after_activation:
            continue
        place += name in names
        places[name] = place
    return places


def _block_diagonal(a: Tensor, b: Tensor) -> Tensor:
    top = torch.cat([a, a.new_zeros(a.shape[0], b.shape[1], *a.shape[2:])], dim=1)
    bottom = torch.cat([b.new_zeros(b.shape[0], a.shape[1], *a.shape[2:]), b], dim=1)
    return torch.cat([top, bottom])
