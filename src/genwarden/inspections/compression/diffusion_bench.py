"""The workbench of one compressed diffusion model: what its inspections share, computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from genwarden.compression.contract import Compressor
from genwarden.inspections.compression.variant import VariantBase
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.orthogonal_response import (
    Recovered,
    measure,
    probe_noise,
    search_shifts,
)
from genwarden.models.diffusion.denoiser import DiffusionModel


@dataclass(frozen=True)
class DiffusionVariantEffort:
    """How much is spent on each variant; the budgets are defined in ``auditing.budgets``.

    Attributes:
        name: quick, standard or thorough.
        starts: of each trigger search, per radius and trigger schedule.
        steps: Adam steps of a search.
        noises: noises per start and step, in antithetic pairs.
        probe_noises: noises on which an end is measured.
        placebos: networks with errors of the same size, each searched like the variant.
        reruns: inspections of ordinary diffusion models that are repeated on every variant.
    """

    name: str
    starts: int
    steps: int
    noises: int
    probe_noises: int
    placebos: int
    reruns: tuple[str, ...] = ()


@dataclass
class VariantSearch:
    """The trigger search that the suspect, its variants and their placebos have in common.

    Args:
        full: the bench of the suspect as it is.
        effort: the budget.
    """

    full: DiffusionBench
    effort: DiffusionVariantEffort

    def of(self, network: DiffusionModel, title: str) -> list[Recovered]:
        """What it finds in a network, strongest first."""
        effort = self.effort
        return search_shifts(
            network,
            starts=effort.starts,
            steps=effort.steps,
            noises=effort.noises,
            probe_noises=effort.probe_noises,
            seed=self.full.seed,
            device=self.full.device,
            timesteps=self.full.timesteps,
            progress=self.full.progress,
            title=title,
        )

    @cached_property
    def full_score(self) -> float:
        """The score of the strongest shift in the suspect as it is."""
        return self.of(self.full.model, "trigger search, as it is")[0].score

    def score_at(self, network: DiffusionModel, found: Recovered) -> float:
        """The score of a shift that the search found in another network, on the same noises."""
        shift = found.shift.to(self.full.device)
        return measure(network, shift, found.reach, self._probe, self.full.timesteps).score

    @cached_property
    def _probe(self) -> Tensor:
        full = self.full
        return probe_noise(self.effort.probe_noises, full.shape, full.seed).to(full.device)


@dataclass
class DiffusionVariantBench(VariantBase[DiffusionModel]):
    """A suspect, and one way to compress it.

    Args:
        search: shared by all variants of the suspect.
        compressor: what a deployer will do to it.
    """

    search: VariantSearch
    compressor: Compressor

    @property
    def full(self) -> DiffusionBench:
        """The bench of the suspect as it is."""
        return self.search.full

    @property
    def effort(self) -> DiffusionVariantEffort:
        """The budget."""
        return self.search.effort

    @property
    def network(self) -> DiffusionModel:
        """The suspect."""
        return self.full.model

    def stream(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose, from the run seed alone."""
        return self.full.stream(purpose)

    def forward(self, network: DiffusionModel) -> Tensor:
        """The estimate of one noise, ``(1, C, H, W)``."""
        noise = torch.randn(1, *network.sample.shape, generator=self.stream("compression-layout"))
        with torch.no_grad():
            return network.epsilon(noise.to(self.full.device), 0)

    @cached_property
    def alone(self) -> DiffusionBench:
        """The compressed model on the bench of the ordinary inspections.

        They work on the shifts that were found here, by no more of a search than they would make.
        """
        spent = replace(
            self.full.effort,
            search_starts=self.effort.starts,
            search_steps=self.effort.steps,
            search_noises=self.effort.noises,
            probe_noises=self.effort.probe_noises,
        )
        bench = replace(self.full, model=self.compressed, effort=spent, base=None)
        bench.timesteps = self.full.timesteps  # where the shifts were measured
        bench.recovered = self.found
        return bench

    @cached_property
    def found(self) -> list[Recovered]:
        """What the trigger search finds in the variant, strongest first."""
        return self.search.of(self.compressed, "trigger search, compressed")

    @cached_property
    def full_score(self) -> float:
        """The strongest answer of the suspect as it is: to its own shift or the variant's."""
        search = self.search
        return max(search.full_score, search.score_at(self.network, self.found[0]))

    @cached_property
    def placebo_scores(self) -> list[float]:
        """The same of each placebo. One search may miss what another finds."""
        return [self._score_of(number) for number in range(self.effort.placebos)]

    def _score_of(self, number: int) -> float:
        placebo = self.placebo(number)
        own = self.search.of(placebo, f"trigger search, placebo {number + 1}")[0].score
        return max(own, self.search.score_at(placebo, self.found[0]))
