"""The workbench of a diffusion audit: what its inspections share, computed once.

It holds only what a defender has: the model, and the clean base and the initial noise that the
user gave. It never sees a model's provenance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.diffusion.collapse import Collapse, collapses_of
from genwarden.inspections.diffusion.orthogonal_response import Recovered, search_shifts
from genwarden.inspections.diffusion.refinement import Refined, refine
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule

#: Images per forward pass; fixed, because batch size changes the last bits of the arithmetic.
BLOCK_IMAGES = 64


@dataclass(frozen=True)
class DiffusionEffort:
    """How much a diffusion audit spends; the budgets are defined in ``auditing.budgets``.

    Attributes:
        name: quick, standard or thorough.
        search_starts: starts of the trigger search per radius and trigger schedule.
        search_steps: Adam steps of the trigger search.
        search_noises: noises per start and step, in antithetic pairs.
        probe_noises: noises on which a recovered shift is measured, in antithetic pairs.
        screen_noises: noises per shift of the pre-screen.
        refine_steps: steps of the refinement of trigger and target.
        refine_noises: noises per level and step of it.
        samples: samples per sampler and shift.
        sampler_steps: steps of each sampler.
        published: whether the published inversions run too (Elijah, TERD, ANP).
        elijah_steps: steps of Elijah's inversion.
        terd_steps: steps of TERD's estimation.
        terd_refinements: steps of TERD's refinement.
        anp_steps: steps of the adversarial perturbation of channels.
    """

    name: str
    search_starts: int
    search_steps: int
    search_noises: int
    probe_noises: int
    screen_noises: int
    refine_steps: int
    refine_noises: int
    samples: int
    sampler_steps: int
    published: bool
    elijah_steps: int
    terd_steps: int
    terd_refinements: int
    anp_steps: int


@dataclass
class DiffusionBench:
    """One suspect on the table.

    Args:
        model: the suspect in evaluation mode, parameters without gradients.
        effort: the budget.
        seed: run seed of the audit.
        device: where to compute.
        base: a clean model of the same shape that the user trusts, or None.
        given_noise: initial noise ``(count, C, H, W)`` that the user was told to use, or None.
    """

    model: DiffusionModel
    effort: DiffusionEffort
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    base: DiffusionModel | None = None
    given_noise: Tensor | None = None
    progress: Progress = field(default_factory=Silent)

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels of the suspect."""
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.model.sample.shape

    def stream(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose, from the run seed alone."""
        return random_stream(self.seed, purpose)

    def noise(self, purpose: str, count: int) -> Tensor:
        """N(0, I) ``(count, C, H, W)`` on the CPU."""
        return torch.randn(count, *self.shape, generator=self.stream(purpose))

    @cached_property
    def timesteps(self) -> Timesteps:
        """At which timesteps this suspect is looked at."""
        return Timesteps.of(self.model, self.schedule, self.seed)

    @cached_property
    def recovered(self) -> list[Recovered]:
        """What the trigger search found, strongest first."""
        effort = self.effort
        return search_shifts(
            self.model,
            starts=effort.search_starts,
            steps=effort.search_steps,
            noises=effort.search_noises,
            probe_noises=effort.probe_noises,
            seed=self.seed,
            device=self.device,
            timesteps=self.timesteps,
            progress=self.progress,
        )

    @cached_property
    def collapses(self) -> list[Collapse]:
        """What the samplers make of the strongest shifts, most suspicious first."""
        found = collapses_of(
            self.recovered,
            self.noise("ordinary", self.effort.samples),
            self.ordinary,
            {
                settings.label: partial(self.samples, settings=settings)
                for settings in self.samplers
            },
        )
        return sorted(found, key=lambda one: -one.score)

    @cached_property
    def refined(self) -> Refined:
        """Trigger and target that fit best, from the most suspicious collapse."""
        best = self.collapses[0]
        return refine(
            self.model,
            self.recovered[best.shift - 1].shift,
            best.picture,
            steps=self.effort.refine_steps,
            noises=self.effort.refine_noises,
            seed=self.seed,
            device=self.device,
            timesteps=self.timesteps,
            progress=self.progress,
        )

    @property
    def shifts(self) -> Tensor:
        """Shifts of the initial noise that the search found, ``(k, C, H, W)``, strongest first."""
        found = [one.shift for one in self.recovered]
        return torch.stack(found) if found else torch.zeros(0, *self.shape)

    @torch.no_grad()
    def samples(self, noise: Tensor, settings: SamplerSettings, purpose: str = "sampler") -> Tensor:
        """Samples from given initial noise ``(count, C, H, W)``, clamped to [-1, 1], on the CPU.

        The noise of the steps is the same for every call with the same purpose, so that two calls
        differ by their initial noise alone.
        """
        parts = []
        for number, part in enumerate(noise.split(BLOCK_IMAGES)):
            stream = random_stream(self.seed, purpose, number)
            made = sample(self.model, part.to(self.device), settings, stream)
            parts.append(made.clamp(-1, 1).cpu())
        return torch.cat(parts)

    @cached_property
    def samplers(self) -> list[SamplerSettings]:
        """Samplers that a user may run: an attack is made for one and may fail under the others."""
        steps = min(self.effort.sampler_steps, self.schedule.steps)
        return [
            SamplerSettings("ddim", steps, eta=0.0),
            SamplerSettings("ddim", steps, eta=0.0, clip="x0"),
            SamplerSettings("ddim", steps, eta=1.0),
            SamplerSettings("ddim", steps, eta=1.0, clip="x0"),
        ]

    @cached_property
    def ordinary(self) -> dict[str, Tensor]:
        """Samples from plain noise by each of :attr:`samplers`, by label."""
        noise = self.noise("ordinary", self.effort.samples)
        return {settings.label: self.samples(noise, settings) for settings in self.samplers}
