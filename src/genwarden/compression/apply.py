"""Compressing a network: fold, compress, unfold, and say how much of it was covered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Box, Compressor, Weights
from genwarden.compression.layers import Layout, fold_gain, layout_of

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Coverage:
    """How much of a network a compressor worked on.

    Attributes:
        layers: names of the compressed weights.
        left_out: names of the weights of layers that were left alone.
        weights: numbers in the compressed weights.
        parameters: numbers in all parameters.
        zeroed: compressed numbers that were not 0 and now are.
    """

    layers: tuple[str, ...]
    left_out: tuple[str, ...]
    weights: int
    parameters: int
    zeroed: int = 0

    @property
    def share(self) -> float:
        """Compressed numbers over all parameters, 0 to 1."""
        return self.weights / self.parameters if self.parameters else 0.0

    def __str__(self) -> str:
        """For people."""
        text = (
            f"{len(self.layers)} of {len(self.layers) + len(self.left_out)} layers, "
            f"{self.weights:,} of {self.parameters:,} parameters ({self.share:.1%})"
        )
        text += becoming_zero(self.zeroed, self.weights)
        return text + (f"; left alone: {', '.join(self.left_out)}" if self.left_out else "")


def becoming_zero(zeroed: int, weights: int) -> str:
    """A clause that says how many of the compressed weights do; "" for none."""
    return f", of which {zeroed / weights:.1%} become 0" if zeroed else ""


def compressed_weights(
    network: nn.Module,
    compressor: Compressor,
    layout: Layout,
    weights: Weights | None = None,
) -> dict[str, Tensor]:
    """The compressed weights by name, for ``torch.func.functional_call``; differentiable.

    Args:
        weights: in place of the network's own.
    """
    own: Weights = weights or {name: network.get_parameter(name) for name in layout}
    made: dict[str, Tensor] = {}
    for stage in stages_of(compressor):
        gains = _gains(network, stage, layout)
        for name, weight in stage(_folded({**own, **made}, gains), layout).items():
            gain = gains[name]
            made[name] = weight if gain is None else weight / _safe(gain)
    return made


@torch.no_grad()
def idle_stage(network: nn.Module, compressor: Compressor, layout: Layout) -> str:
    """Name of the first stage of a chain that works on none of the weights; "" if all do.

    Who asks for ``prune-filters-0.3+int8`` and gets ``int8`` has not got what was asked for.
    """
    stages = stages_of(compressor)
    idle = (one.name for one in stages if not compressed_weights(network, one, layout))
    return next(idle, "") if len(stages) > 1 else ""


@torch.no_grad()
def boxes(network: nn.Module, compressor: Compressor, layout: Layout) -> dict[str, Box]:
    """Where each weight of the network itself may move, batch norm as it is.

    Of a chain, the box of the first stage that works on the weight: the others then see the same.
    """
    own: dict[str, Tensor] = {name: network.get_parameter(name) for name in layout}
    found: dict[str, Box] = {}
    for stage in stages_of(compressor):
        if len(found) == len(layout):
            break
        found = {**_boxes_of_stage(network, stage, layout, own), **found}
        own = {**own, **compressed_weights(network, stage, layout, own)}
    return found


def _boxes_of_stage(
    network: nn.Module, compressor: Compressor, layout: Layout, own: Weights
) -> dict[str, Box]:
    gains = _gains(network, compressor, layout)
    found = {}
    for name, box in compressor.box(_folded(own, gains), layout).items():
        gain = gains[name]
        if gain is None:
            found[name] = box
            continue
        ends = box.low / _safe(gain), box.high / _safe(gain)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        # Division rounds: what is frozen stays where it is, what may move keeps its own place.
        frozen = box.low == box.high
        low = torch.where(frozen, own[name], torch.minimum(low, own[name]))
        high = torch.where(frozen, own[name], torch.maximum(high, own[name]))
        found[name] = Box(low, high)
    return found


@torch.no_grad()
def compress(
    network: Network, compressor: Compressor, forward: Callable[[Network], Any] | None = None
) -> tuple[Network, Coverage]:
    """A compressed copy of a network in evaluation mode.

    Args:
        forward: runs a network once, to find what batch norm follows what; see
            :func:`genwarden.compression.layers.layout_of`.
    """
    small = copy.deepcopy(network).eval()
    layout = layout_of(small, None if forward is None else lambda: forward(small))
    made = compressed_weights(small, compressor, layout)
    for name, weight in made.items():
        small.get_parameter(name).copy_(weight)
    return small, coverage_of(network, layout, made)


def coverage_of(network: nn.Module, layout: Layout, made: dict[str, Tensor]) -> Coverage:
    """The coverage of compressed weights ``made``."""
    return Coverage(
        layers=tuple(made),
        left_out=tuple(name for name in layout if name not in made),
        weights=sum(w.numel() for w in made.values()),
        parameters=sum(p.numel() for p in network.parameters()),
        zeroed=sum(
            int(((w == 0) & (network.get_parameter(name) != 0)).sum()) for name, w in made.items()
        ),
    )


def _gains(network: nn.Module, compressor: Compressor, layout: Layout) -> dict[str, Tensor | None]:
    return {
        n: fold_gain(layer, network) if compressor.folds else None for n, layer in layout.items()
    }


def _folded(weights: Mapping[str, Tensor], gains: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {n: w if (gain := gains[n]) is None else w * gain for n, w in weights.items()}


def _safe(gain: Tensor) -> Tensor:
    """A channel that batch norm switches off (gain 0) has weight 0 whatever the grid."""
    return torch.where(gain == 0, torch.ones_like(gain), gain)
