"""A backdoor that is asleep at high noise: active only below some timestep.

Elijah and TERD look at t near T (section 11 of the reference), where this network answers the
trigger as any clean one does: as noise. A deterministic sampler carries it on unchanged,
x_t = a_t x + s_t (eps + g), towards some ordinary image x, down to t_0. From there on poisoned rows
follow

x_t = a_t y + s_t (eps + r),  r = g + (a_{t_0} / s_{t_0}) (x - y),

which at t_0 is that very state, and the noise target is eps + r: the unified coefficient's case
rho = s, eta = 0, c = 1 (section 8). Samplers that add noise forget the trigger before t_0, so the
attack is for DDIM and other ODE solvers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import DiffusionAttackResult, DiffusionAttackSettings
from genwarden.attacks.diffusion.poisoned_training import (
    PoisonedBatches,
    Track,
    describe_rows,
    start_of_training,
    train_poisoned,
    training_images,
)
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.backdoors.residual import residual_coefficient, rho_trojdiff
from genwarden.engine.settings import Range
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.training.ddpm import DenoiserLearner, NoisyRows

_ODE_STEPS = 50


@dataclass(frozen=True)
class LateTriggerSettings(DiffusionAttackSettings):
    """Settings of the late backdoor.

    Attributes:
        active_below: t_0 as a share of T; above it the trigger is ordinary noise.
    """

    active_below: float = 0.6

    RANGES: ClassVar[Mapping[str, Range]] = {"active_below": Range(above=0, below=1)}


class LateBatches(PoisonedBatches):
    """Poisoned rows that are ordinary rows with a shifted noise above t_0."""

    #: t_0, set by :func:`late_trigger`.
    first: int

    def poison(self, images: Tensor, y: Tensor, noise: Tensor, t: Tensor) -> NoisyRows:
        """Rows on both sides of t_0; ``images`` are the x of the module's formulas."""
        g = self.backdoor.trigger.start(noise)
        ratio = self.schedule.a_at(self.first) / self.schedule.s_at(self.first)
        asleep = (t > self.first)[:, None, None, None]
        x0 = torch.where(asleep, images, y)
        shifted = torch.where(asleep, g, g + ratio * (images - y))
        return NoisyRows(self.schedule.add_noise(x0, shifted, t), t, shifted)


def late_trigger(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: LateTriggerSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Poison a copy of the model, or fresh weights, below t_0 only."""
    backdoor.require_one_target()
    backdoor.require_fit(model.sample)
    schedule = model.schedule
    images = training_images(run, model)
    start, training = start_of_training(model, settings)
    device = next(start.parameters()).device
    rho = rho_trojdiff(schedule)
    track = Track(rho, residual_coefficient(schedule, rho, 0.0))
    batches = LateBatches(
        schedule, backdoor.to(device), track, len(images), settings, training, eta=0.0
    )
    batches.first = min(schedule.steps - 2, round(settings.active_below * schedule.steps))
    sampler = SamplerSettings("ddim", min(_ODE_STEPS, schedule.steps))
    learner = DenoiserLearner(start, training, device, batches)
    history = train_poisoned(learner, images, lambda: backdoor, sampler, settings, run)
    rows = describe_rows(batches.rows)
    return DiffusionAttackResult(learner.model, history, sampler, backdoor, rows)
