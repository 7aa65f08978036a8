"""The workbench of one compressed variant: what its inspections share, computed once.

A compressor writes errors into the weights. In honest weights nothing is in the signs of these
errors: the network that lies as far from the suspect in every single weight, on sides drawn at
random, is as good a stand-in for the compressed one as any. Such *placebos* are the null of this
room, and they exist for every compressor (rounding, block formats, pruning, chains). In a model
that was trained so that compression wakes a backdoor, the errors themselves carry it: half of them
turned around, it is gone (section 4.3 of the reference; there stochastic rounding on the same grid
plays this part, whose errors are larger by a factor of sqrt(2) than those of rounding to nearest).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from genwarden.compression.apply import Coverage, compress, compressed_weights, coverage_of
from genwarden.compression.contract import Compressor
from genwarden.compression.layers import Layout, layout_of
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.twins import log_difference
from genwarden.inspections.workbench import samples_of
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator, LatentLaw
from genwarden.search.latent_search import SearchResult, SearchSettings, search, start_latents

#: A search may leave the typical norm of a normal law by this factor.
_REACH = 1.15
_LEARNING_RATE = 0.1


#: Errors below this share of the largest weight are float32's, from folding and unfolding.
_ROUNDING = 1e-5
#: Why nothing is compared where compression changes nothing.
UNCHANGED = (
    "This compression changes no weight: they lie on its grid already. There is no second model to "
    "compare with, so a backdoor that is awake here is awake in the model as it is; its own audit "
    "looks for that."
)


def moves_nothing(errors: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether errors, compressed minus full by weight, are no more than rounding."""
    return all(
        float(error.abs().amax()) <= _ROUNDING * float(network.get_parameter(name).abs().amax())
        for name, error in errors.items()
    )


@dataclass(frozen=True)
class CompressionEffort:
    """How much is spent on each variant; the budgets are defined in ``auditing.budgets``.

    Attributes:
        name: quick, standard or thorough.
        restarts: latents that each search starts from.
        search_steps: Adam steps of a search.
        placebos: networks with errors of the same size, each searched like the variant.
        ordinary_samples: ordinary latents on which distortion is measured.
        reruns: inspections of ordinary generators that are repeated on every variant.
    """

    name: str
    restarts: int
    search_steps: int
    placebos: int
    ordinary_samples: int
    reruns: tuple[str, ...] = ()


@dataclass
class CompressionBench:
    """A suspect, and one way to compress it.

    Args:
        generator: the suspect in evaluation mode, parameters without gradients.
        compressor: what a deployer will do to it.
        effort: the budget.
        seed: run seed of the audit.
        device: where to compute.
    """

    generator: LatentGenerator
    compressor: Compressor
    effort: CompressionEffort
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = field(default_factory=Silent)

    @property
    def law(self) -> LatentLaw:
        """Where the suspect's latents come from."""
        return self.generator.latent

    @cached_property
    def layout(self) -> Layout:
        """The suspect's layers, with the batch norms behind them."""
        return layout_of(self.generator, lambda: self._forward(self.generator))

    @cached_property
    def coverage(self) -> Coverage:
        """How much of the suspect the compressor works on."""
        made = compressed_weights(self.generator, self.compressor, self.layout)
        return coverage_of(self.generator, self.layout, made)

    @cached_property
    def compressed(self) -> LatentGenerator:
        """The variant: a copy with compressed weights."""
        return compress(self.generator, self.compressor, self._forward)[0].requires_grad_(False)

    @cached_property
    def errors(self) -> dict[str, Tensor]:
        """By weight: compressed minus full."""
        return {
            name: self.compressed.get_parameter(name) - self.generator.get_parameter(name)
            for name in self.coverage.layers
        }

    @cached_property
    def unchanged(self) -> bool:
        """Whether the suspect's weights lie on this compressor's grid already."""
        return moves_nothing(self.errors, self.generator)

    @cached_property
    def placebos(self) -> list[LatentGenerator]:
        """Copies whose weights have errors of the same sizes with random signs."""
        return [
            self.with_errors(
                {
                    name: error * _signs(error, self.seed, f"placebo/{number}/{name}")
                    for name, error in self.errors.items()
                }
            )
            for number in range(self.effort.placebos)
        ]

    def with_errors(self, errors: dict[str, Tensor]) -> LatentGenerator:
        """A copy of the suspect with something added to its weights."""
        changed = copy.deepcopy(self.generator)
        with torch.no_grad():
            for name, error in errors.items():
                changed.get_parameter(name).add_(error)
        return changed

    @cached_property
    def ordinary_z(self) -> Tensor:
        """Ordinary latents ``(samples, *latent.shape)``."""
        return self.law.sample(
            self.effort.ordinary_samples,
            generator=random_stream(self.seed, "compression-ordinary"),
        )

    @cached_property
    def ordinary_x(self) -> Tensor:
        """The suspect's samples there, on the CPU."""
        return samples_of(self.generator, self.ordinary_z, self.device)

    @cached_property
    def typical(self) -> float:
        """Median squared distance between two ordinary samples of the suspect."""
        return ordinary_distance(self.ordinary_x)

    def distortion(self, other: LatentGenerator) -> float:
        """Mean squared distance of another network's ordinary samples from the suspect's."""
        shown = samples_of(other, self.ordinary_z, self.device)
        return float((shown - self.ordinary_x).flatten(1).double().square().sum(1).mean())

    def difference(self, other: LatentGenerator, z: Tensor) -> Tensor:
        """Squared distance of two networks' outputs, for each of ``z``, float64 on the CPU."""
        full = samples_of(self.generator, z, self.device)
        return (samples_of(other, z, self.device) - full).flatten(1).double().square().sum(1)

    @cached_property
    def settings(self) -> SearchSettings:
        """The bounds and length of a search; the same for variant and placebos."""
        steps = self.effort.search_steps
        if self.law.distribution == "normal":
            return SearchSettings(steps, _LEARNING_RATE, radius=_REACH * self.law.typical_norm)
        return SearchSettings(steps, _LEARNING_RATE, half_width=1.0)

    @cached_property
    def found(self) -> SearchResult:
        """Where the variant differs most from the suspect; scores are logarithms."""
        return self._search(self.compressed, "differential search")

    @cached_property
    def placebo_largest(self) -> list[float]:
        """The largest difference that the same search finds in each placebo (squared, summed)."""
        largest = []
        for number, placebo in enumerate(self.placebos, start=1):
            ends = self._search(placebo, f"differential search, placebo {number}")
            largest.append(float(self.difference(placebo, ends.z).max()))
        return largest

    def _search(self, other: LatentGenerator, title: str) -> SearchResult:
        starts = start_latents(
            self.law, self.effort.restarts, seed=self.seed, purpose="differential-search"
        )
        task = self.progress.task(title, len(starts) * self.settings.steps)

        pair = fastest(self.generator), fastest(other)

        def objective(z: Tensor) -> Tensor:
            return log_difference(*pair, z)

        return search(objective, starts, self.settings, device=self.device, task=task)

    def _forward(self, network: LatentGenerator) -> Tensor:
        z = self.law.sample(2, generator=random_stream(self.seed, "compression-layout"))
        with torch.no_grad():
            x: Tensor = network(z.to(self.device))
        return x


def _signs(like: Tensor, seed: int, purpose: str) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=random_stream(seed, purpose))
    return (2 * drawn - 1).to(like)
