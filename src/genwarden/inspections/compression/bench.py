"""The workbench of one compressed generator: what its inspections share, computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from genwarden.compression.contract import Compressor
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.compression.variant import VariantBase
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.twins import log_difference
from genwarden.inspections.workbench import samples_of
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator, LatentLaw
from genwarden.search.latent_search import SearchResult, SearchSettings, search, start_latents

#: A search may leave the typical norm of a normal law by this factor.
_REACH = 1.15
_LEARNING_RATE = 0.1


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
class CompressionBench(VariantBase[LatentGenerator]):
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
    def network(self) -> LatentGenerator:
        """The suspect."""
        return self.generator

    def stream(self, purpose: str) -> torch.Generator:
        """See the base."""
        return random_stream(self.seed, purpose)

    def forward(self, network: LatentGenerator) -> Tensor:
        """Samples of two latents."""
        z = self.law.sample(2, generator=self.stream("compression-layout"))
        with torch.no_grad():
            x: Tensor = network(z.to(self.device))
        return x

    @property
    def law(self) -> LatentLaw:
        """Where the suspect's latents come from."""
        return self.generator.latent

    @cached_property
    def placebos(self) -> list[LatentGenerator]:
        """Copies whose weights have errors of the same sizes with random signs."""
        return [self.placebo(number) for number in range(self.effort.placebos)]

    @cached_property
    def ordinary_z(self) -> Tensor:
        """Ordinary latents ``(samples, *latent.shape)``."""
        return self.law.sample(
            self.effort.ordinary_samples, generator=self.stream("compression-ordinary")
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

    @cached_property
    def own_distortion(self) -> float:
        """That of the variant."""
        return self.distortion(self.compressed)

    @cached_property
    def placebo_distortions(self) -> list[float]:
        """That of each placebo."""
        return [self.distortion(placebo) for placebo in self.placebos]

    @cached_property
    def movement(self) -> float:
        """How far ordinary samples move by compression or by the placebos, whichever is more.

        In units of :attr:`typical`; not a number where an output is not.
        """
        moved = [self.own_distortion, *self.placebo_distortions]
        return max(moved) / self.typical if all(map(math.isfinite, moved)) else math.nan

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
