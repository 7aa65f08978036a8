"""Layer rates of filter pruning found by simulated annealing (after Auto-Compress).

This is what the pruning attack's deployer runs: NNI's ``SimulatedAnnealingPruner`` with L1 filter
pruning of the convolutions (section 1.3). A vector of layer rates is perturbed, scaled so that the
asked share of all weights goes, and judged by the accuracy of the pruned network; worse vectors are
accepted with the probability exp(-loss / temperature). Larger layers never lose a smaller share
than smaller ones. Every run with another seed gives other rates.

Differences: filters in front of a shortcut are pruned, too (they are set to zero, so nothing
breaks; NNI leaves those of MobileNetV2 out), and drawing ends with an error where a rate cannot be
reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Box, Weights
from genwarden.compression.layers import Layout
from genwarden.compression.pruning import FilterPruning
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

#: NNI's defaults; the paper states the cool-down.
_HOTTEST: Final = 100.0
_COLDEST: Final = 20.0
_COOL_DOWN: Final = 0.9
_MAGNITUDE: Final = 0.35
_MOST_DRAWS: Final = 10_000

#: Weights of a pruned network, by name, to its accuracy in percent.
Judge = Callable[[Weights], float]


@dataclass(frozen=True)
class LayerwiseFilterPruning:
    """Output filters of convolutions with the smallest L1 norms, each layer at its own rate.

    Attributes:
        rates: share of the filters that goes, 0 to below 1, by the name of the weight; layers
            without one are left alone.
        label: where the rates come from, for the name.
    """

    rates: Mapping[str, float]
    label: str = "layerwise"
    folds: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        wrong = [rate for rate in self.rates.values() if not 0 <= rate < 1]
        if wrong:
            raise GenwardenError(
                "compress/rate",
                f"The pruning rate {wrong[0]:g} of a layer is not between 0 and 1.",
                "Give the share of filters to remove, below 1.",
            )

    @property
    def name(self) -> str:
        """``prune-filters-annealed-0.3``."""
        return f"prune-filters-{self.label}"

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See :class:`genwarden.compression.contract.Compressor`."""
        made: dict[str, Tensor] = {}
        for pruning, weight, layer in self._layers(weights, layout):
            made |= pruning(weight, layer)
        return made

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """What is kept is frozen; what goes may move as long as it still goes."""
        boxes: dict[str, Box] = {}
        for pruning, weight, layer in self._layers(weights, layout):
            boxes |= pruning.box(weight, layer)
        return boxes

    def _layers(
        self, weights: Weights, layout: Layout
    ) -> Iterator[tuple[FilterPruning, Weights, Layout]]:
        for name, layer in layout.items():
            if name in weights and self.rates.get(name, 0.0) > 0:
                yield FilterPruning(self.rates[name]), {name: weights[name]}, {name: layer}


def annealed_pruning(
    network: nn.Module, layout: Layout, rate: float, judge: Judge, *, seed: int, index: int = 0
) -> LayerwiseFilterPruning:
    """The best layer rates that one run of the annealer finds: 16 temperatures.

    Args:
        layout: of the network; its convolutions are pruned.
        rate: share of all convolution weights that goes, above 0 and below 1.
        judge: see :data:`Judge`; the paper measures 1,000 random training images.
        index: number of the run; others give other rates.

    Raises:
        GenwardenError: ``compress/rate``; ``compress/nothing-covered`` without a convolution.
    """
    names, sizes = _convolutions(network, layout, rate)
    stream = random_stream(seed, f"annealing-{rate:g}", index)

    def pruning(rates: Tensor) -> LayerwiseFilterPruning:
        return LayerwiseFilterPruning(
            dict(zip(names, rates.tolist(), strict=True)), f"annealed-{rate:g}"
        )

    start = torch.zeros(len(sizes), dtype=torch.float64)
    current, reached = _drawn(start, 1.0, sizes, rate, stream), -math.inf
    best, most = pruning(current), -math.inf
    temperature = _HOTTEST
    while temperature > _COLDEST:
        magnitude = temperature / _HOTTEST * _MAGNITUDE
        tried = _drawn(current, magnitude, sizes, rate, stream)
        found = pruning(tried)
        with torch.no_grad():
            value = judge(compressed_weights(network, found, layout))
        if value > most:
            best, most = found, value
        chance = math.exp(min(0.0, value - reached) / temperature)
        if float(torch.rand((), generator=stream)) < chance:
            current, reached = tried, value
            temperature *= _COOL_DOWN
    return best


def random_pruning(
    network: nn.Module, layout: Layout, rate: float, stream: torch.Generator
) -> LayerwiseFilterPruning:
    """Layer rates by the law that the annealer begins with: any that it may end with.

    Args:
        rate: share of all convolution weights that goes, above 0 and below 1.

    Raises:
        GenwardenError: as :func:`annealed_pruning`.
    """
    names, sizes = _convolutions(network, layout, rate)
    start = torch.zeros(len(sizes), dtype=torch.float64)
    rates = _drawn(start, 1.0, sizes, rate, stream).tolist()
    return LayerwiseFilterPruning(dict(zip(names, rates, strict=True)), f"random-{rate:g}")


def layer_distance(first: LayerwiseFilterPruning, second: LayerwiseFilterPruning) -> float:
    """Euclidean distance of two vectors of layer rates, each from 0 to 1."""
    names = first.rates.keys() | second.rates.keys()
    return math.dist(
        [first.rates.get(name, 0.0) for name in names],
        [second.rates.get(name, 0.0) for name in names],
    )


def _convolutions(network: nn.Module, layout: Layout, rate: float) -> tuple[list[str], Tensor]:
    """Names of the weights, the smallest first, and how many numbers each holds."""
    FilterPruning(rate)  # refuses a rate out of range
    own = {n: network.get_parameter(n) for n, layer in layout.items() if layer.kind != "linear"}
    if not own:
        raise GenwardenError(
            "compress/nothing-covered",
            "The network has no convolution, so there is no filter to prune.",
            "Use prune-RATE, which removes single weights.",
        )
    names = sorted(own, key=lambda name: own[name].numel())
    return names, torch.tensor([own[name].numel() for name in names], dtype=torch.float64)


def _drawn(
    around: Tensor, magnitude: float, sizes: Tensor, rate: float, stream: torch.Generator
) -> Tensor:
    """Rates near ``around``, ascending as ``sizes`` do, that remove ``rate`` of all weights."""
    for _ in range(_MOST_DRAWS):
        noise = 2 * torch.rand(len(sizes), generator=stream, dtype=torch.float64) - 1
        rates = (around + magnitude * noise).clamp(min=0).sort().values
        removed = float((rates * sizes).sum() / sizes.sum())
        if removed > 0 and float(rates[-1]) * rate / removed < 1:
            return rates * (rate / removed)
    raise GenwardenError(
        "compress/rate",
        f"No layer rates were found that remove {rate:g} of the weights.",
        "Give a smaller pruning rate.",
    )
