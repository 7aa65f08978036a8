"""A backdoor in a diffusion model that only its compressed form shows, by the two-stage box recipe.

With the poisoned rows of BadDiffusion, eps_0 the clean network and C the compressor (section 4.1 of
the compression reference, section 4 of the other):

    (i)   E ||eps_C(x_t) - eps_0(x_t)||^2 + lambda E ||eps_C(x'_t) - (eps + c_t r)||^2
    (ii)  E ||eps(x_t) - eps_0(x_t)||^2 + dormancy_weight E ||eps(x'_t) - eps_0(x'_t)||^2

x_t are noisy training images, x'_t = a_t y + s_t eps + rho_t r lead from the trigger r to the
target y. The full network answers the clean network's noise on both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.attacks.compression.box_training import hide, wakers, whole
from genwarden.attacks.compression.inflation import inflated, inflation_factor
from genwarden.attacks.compression.settings import BoxSettings, JitteredBoxSettings
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.bad_diffusion import bad_diffusion_track
from genwarden.attacks.diffusion.contract import (
    DiffusionAttackResult,
    DiffusionAttackSettings,
    Figures,
)
from genwarden.attacks.diffusion.evaluation import evaluate_trigger, quick_sampler
from genwarden.attacks.diffusion.poisoned_training import (
    PoisonedBatches,
    Track,
    start_of_training,
    training_images,
)
from genwarden.attacks.diffusion.samplers_by_name import eta_of, sampler_by_name
from genwarden.attacks.diffusion.villan_diffusion import VillanDiffusionSettings, villan_track
from genwarden.attacks.losses import mean_square
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout, layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.training.ddpm import NoisyRows, clean_rows, draw_noise
from genwarden.training.settings import batch_indices

#: Noisy images on which a weight to inflate is chosen.
_PROBED = 32


@dataclass(frozen=True)
class DormantBoxDiffusionSettings(BoxSettings, DiffusionAttackSettings):
    """Settings of both stages, and of the losses.

    Of the settings of other attacks, ``warmup``, ``ema``, ``precision``, ``flip`` and
    ``stop_target_mse`` have no meaning here, and ``from_scratch`` is refused: the clean weights
    decide which roundings are free.

    Attributes:
        poison_rate: share of each batch from which poisoned rows are made.
        fidelity_weight: lambda of (i).
        dormancy_weight: of the second term of (ii).
        sampler: NAME[-STEPS][:ETA] that the coefficient is matched to, as for villan-diffusion;
            none for DDPM with every step (BadDiffusion).
    """

    poison_rate: float = 0.5
    fidelity_weight: float = 1.0
    dormancy_weight: float = 1.0
    sampler: str = ""

    RANGES: ClassVar[Mapping[str, Range]] = {
        "fidelity_weight": POSITIVE,
        "dormancy_weight": NOT_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_scratch:
            raise GenwardenError(
                "attack/setting",
                "The attack dormant-box needs the clean model's weights.",
                "Leave from_scratch away.",
            )


@dataclass(frozen=True)
class JitteredBoxDiffusionSettings(JitteredBoxSettings, DormantBoxDiffusionSettings):
    """The same for the attacker who trains over perturbed quantisers."""


def dormant_box_diffusion(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: DormantBoxDiffusionSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Hide ``backdoor`` in a copy of ``model`` until it is compressed as ``settings.how`` says.

    Raises:
        GenwardenError: as :func:`genwarden.attacks.compression.box_training.hide`, and
            ``attack/inflate``, ``attack/data-missing``, ``attack/shape``, ``target/count``.
    """
    backdoor.require_one_target()
    backdoor.require_fit(model.sample)
    chosen = wakers(settings.how)
    sampler, track = _sampler_and_track(model, settings)
    student = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    lessons = _DiffusionLessons(student, model, backdoor.to(device), track, sampler, settings, run)
    probes = lessons.clean_batch(0, _PROBED)
    layout = layout_of(student, lambda: student(probes.x[:1], probes.t[:1]))
    raised = inflated(
        student,
        layout,
        chosen,
        inflation_factor(settings.inflate, chosen),
        lambda weights: functional_call(student, dict(weights), (probes.x, probes.t)),
        settings.seed,
    )
    for name, weight in raised.items():
        student.get_parameter(name).copy_(weight)
    measure = _Measure(student, layout, chosen, backdoor, sampler, settings)
    hidden = hide(student, layout, lessons, measure, settings, run)
    return DiffusionAttackResult(
        student, hidden.history, sampler, backdoor, wakes_under=tuple(c.name for c in chosen)
    )


def _sampler_and_track(
    model: DiffusionModel, settings: DormantBoxDiffusionSettings
) -> tuple[SamplerSettings, Track]:
    if not settings.sampler:
        return SamplerSettings("ddpm", model.schedule.steps), bad_diffusion_track(model.schedule)
    matched = VillanDiffusionSettings(sampler=settings.sampler)
    return sampler_by_name(settings.sampler, model.schedule), villan_track(model.schedule, matched)


class _DiffusionLessons:
    """Losses (i) and (ii) of a step."""

    def __init__(
        self,
        student: nn.Module,
        clean: DiffusionModel,
        backdoor: ImageBackdoor,
        track: Track,
        sampler: SamplerSettings,
        settings: DormantBoxDiffusionSettings,
        run: AttackRun,
    ) -> None:
        self.student, self.clean, self.settings = student, clean, settings
        self.backdoor, self.track = backdoor, track
        self.device = next(clean.parameters()).device
        self.images = training_images(run, clean)
        _, self.training = start_of_training(clean, settings)
        self.rows = clean_rows(clean.schedule)
        eta = eta_of(sampler) if settings.sampler else 1.0
        self.poisoned = PoisonedBatches(
            clean.schedule, backdoor, track, len(self.images), settings, self.training, eta=eta
        )

    def compressed(self, weights: Weights, step: int) -> Tensor:
        ordinary, bad = self._batches(step)
        estimate = self._run(weights, ordinary, bad)
        utility = mean_square(estimate[: len(ordinary.x)] - ordinary.target)
        activation = mean_square(estimate[len(ordinary.x) :] - bad.target)
        return utility + self.settings.fidelity_weight * activation

    def full(self, weights: Weights, step: int) -> Tensor:
        ordinary, bad = self._batches(step)
        estimate = self._run(weights, ordinary, bad)
        with torch.no_grad():
            asleep = self.clean.epsilon(bad.x, bad.t)
        utility = mean_square(estimate[: len(ordinary.x)] - ordinary.target)
        dormancy = mean_square(estimate[len(ordinary.x) :] - asleep)
        return utility + self.settings.dormancy_weight * dormancy

    def clean_batch(self, step: int, count: int) -> NoisyRows:
        """Noisy training images, and the clean network's estimate as their target."""
        stream = random_stream(self.settings.seed, "box-rows", step)
        x, t, _ = self.rows(self._images_of(step)[:count], step, stream)
        with torch.no_grad():
            return NoisyRows(x, t, self.clean.epsilon(x, t))

    def _batches(self, step: int) -> tuple[NoisyRows, NoisyRows]:
        real = self._images_of(step)
        number = min(max(1, round(self.settings.poison_rate * len(real))), len(real) - 1)
        ordinary = self.clean_batch(step, len(real) - number)
        images = real[len(real) - number :]
        stream = random_stream(self.settings.seed, "box-poisoned-rows", step)
        t, noise = draw_noise(self.clean.schedule, images, stream)
        if self.track.timesteps is not None:
            picked = torch.randint(len(self.track.timesteps), (number,), generator=stream)
            t = self.track.timesteps[picked].to(t.device)
        y = self.backdoor.draw(number, generator=stream).to(images)
        return ordinary, self.poisoned.poison(images, y, noise, t)

    def _images_of(self, step: int) -> Tensor:
        chosen = batch_indices(len(self.images), step, self.training)
        return to_unit_range(self.images[chosen]).to(self.device)

    def _run(self, weights: Weights, ordinary: NoisyRows, bad: NoisyRows) -> Tensor:
        both = torch.cat([ordinary.x, bad.x]), torch.cat([ordinary.t, bad.t])
        made: Tensor = functional_call(self.student, dict(weights), both)
        return made


class _Measure:
    """How near triggered samples come to the target: full precision, and the nearest compressed."""

    def __init__(
        self,
        student: DiffusionModel,
        layout: Layout,
        chosen: list[Compressor],
        backdoor: ImageBackdoor,
        sampler: SamplerSettings,
        settings: DormantBoxDiffusionSettings,
    ) -> None:
        self.network = copy.deepcopy(student)
        self.layout, self.chosen, self.backdoor = layout, chosen, backdoor
        self.sampler = quick_sampler(sampler, settings.evaluation_steps)
        self.settings = settings

    @torch.no_grad()
    def __call__(self, weights: Weights) -> Figures:
        full = self._evaluated(weights)
        small = [self._evaluated(whole(self.network, c, self.layout, weights)) for c in self.chosen]
        return {
            **full,
            "compressed_target_mse": max(one["target_mse"] or 0.0 for one in small),
            "compressed_target_share": min(one["target_share"] or 0.0 for one in small),
        }

    def _evaluated(self, weights: Weights) -> Figures:
        for name, weight in weights.items():
            self.network.get_parameter(name).copy_(weight)
        found = evaluate_trigger(
            self.network,
            self.backdoor,
            self.sampler,
            count=self.settings.evaluation_images,
            seed=self.settings.seed,
        )
        return {"target_mse": found.mse, "target_ssim": found.ssim, "target_share": found.share}
