"""The workbench of one compressed diffusion model: what its inspections share, computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from genwarden.compression.contract import Compressor
from genwarden.inspections.compression.variant import Variant
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.orthogonal_response import Recovered, search_shifts
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
            progress=self.full.progress,
            title=title,
        )

    @cached_property
    def full_score(self) -> float:
        """The score of the strongest shift in the suspect as it is."""
        return self.of(self.full.model, "trigger search, as it is")[0].score


@dataclass
class DiffusionVariantBench(Variant[DiffusionModel]):
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
        """See the base."""
        return self.full.stream(purpose)

    def forward(self, network: DiffusionModel) -> Tensor:
        """The estimate of one noise."""
        noise = torch.randn(1, *network.sample.shape, generator=self.stream("compression-layout"))
        with torch.no_grad():
            return network.epsilon(noise.to(self.full.device), 0)

    @cached_property
    def alone(self) -> DiffusionBench:
        """The compressed model on the bench of the ordinary inspections."""
        return self.beside(self.compressed)

    def beside(self, network: DiffusionModel) -> DiffusionBench:
        """Another network on a bench like the suspect's, with the same noises."""
        return replace(self.full, model=network, base=None)

    @cached_property
    def found(self) -> list[Recovered]:
        """What the trigger search finds in the variant, strongest first."""
        return self.search.of(self.compressed, "trigger search, compressed")

    @cached_property
    def placebo_scores(self) -> list[float]:
        """The score of the strongest shift that the same search finds in each placebo."""
        return [
            self.search.of(self.placebo(number), f"trigger search, placebo {number + 1}")[0].score
            for number in range(self.effort.placebos)
        ]
