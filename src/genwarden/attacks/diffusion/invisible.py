"""InviBackdoor ("Invisible Backdoor Attacks on Diffusion Models", section 9): a learned trigger.

Two problems in turns. Inner: the trigger delta, bounded by ||delta||_inf <= bound, is moved so that
a short differentiable sampler from eps + delta gives the target. Outer: one step of BadDiffusion's
loss with r = delta and the coefficient of a deterministic sampler (eta = 0), so the attack is for
DDIM. The trigger that the user names is where delta starts, within the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

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
from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, Range
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.training.ddpm import DdpmSettings, DenoiserLearner

_ODE_STEPS = 50


@dataclass(frozen=True)
class InvisibleSettings(DiffusionAttackSettings):
    """Settings of the invisible trigger.

    Attributes:
        bound: largest absolute value of delta.
        trigger_rate: Adam's learning rate for delta.
        trigger_every: outer steps per inner step; the paper has 1, which costs ten times as much.
        trigger_batch: noises per inner step.
        trigger_steps: steps of the differentiable sampler.
    """

    bound: float = 0.2
    trigger_rate: float = 1e-2
    trigger_every: int = 10
    trigger_batch: int = 8
    trigger_steps: int = 10

    RANGES: ClassVar[Mapping[str, Range]] = {
        "bound": POSITIVE,
        "trigger_rate": POSITIVE,
        "trigger_every": COUNT,
        "trigger_batch": COUNT,
        "trigger_steps": COUNT,
    }


class LearnedTrigger(nn.Module):
    """delta, bounded in the max norm, ``(C, H, W)``.

    Args:
        start: clamped to the bound.
    """

    def __init__(self, start: Tensor, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.delta = nn.Parameter(start.clamp(-bound, bound).clone())

    @torch.no_grad()
    def bind(self) -> None:
        """Back into the bound, after a step of the optimiser."""
        self.delta.clamp_(-self.bound, self.bound)


class InvisibleLearner(DenoiserLearner):
    """A denoiser and its trigger, in turns.

    Args:
        trigger: on the device.
        target: ``(C, H, W)`` on the device.
        attack: settings of the attack.
    """

    def __init__(
        self,
        model: DiffusionModel,
        training: DdpmSettings,
        device: torch.device,
        rows: PoisonedBatches,
        trigger: LearnedTrigger,
        target: Tensor,
        attack: InvisibleSettings,
    ) -> None:
        super().__init__(model, training, device, rows)
        self.trigger, self.target, self.attack = trigger, target, attack
        self.trigger_adam = torch.optim.Adam(trigger.parameters(), attack.trigger_rate)

    @property
    def parts(self) -> dict[str, Trainable]:
        """Those of a denoiser, delta and its optimiser."""
        return {**super().parts, "trigger": self.trigger, "trigger_adam": self.trigger_adam}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """An inner step where it is due, then the outer one."""
        if step % self.attack.trigger_every == 0:
            self._move_trigger(step)
        return super().step(real, step, stream)

    def _move_trigger(self, step: int) -> None:
        """One Adam step of delta on the squared distance of short samples to the target."""
        stream = random_stream(self.attack.seed, "invisible-trigger", step)
        shape = (self.attack.trigger_batch, *self.target.shape)
        noise = torch.randn(shape, generator=stream).to(self.target)
        steps = min(self.attack.trigger_steps, self.model.schedule.steps)
        self.model.requires_grad_(False)
        made = sample(self.model, noise + self.trigger.delta, SamplerSettings("ddim", steps))
        self.trigger_adam.zero_grad(set_to_none=True)
        (made - self.target).square().mean().backward()
        self.trigger_adam.step()
        self.trigger.bind()
        self.model.requires_grad_(True)


def invisible(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: InvisibleSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Learn a trigger within the bound together with the backdoor that answers it."""
    backdoor.require_one_target()
    backdoor.require_fit(model.sample)
    schedule = model.schedule
    images = training_images(run, model)
    start, training = start_of_training(model, settings)
    device = next(start.parameters()).device
    trigger = LearnedTrigger(backdoor.trigger.g, settings.bound).to(device)

    def planted() -> ImageBackdoor:
        delta = trigger.delta.detach().cpu().clone()
        made = replace(
            backdoor.trigger,
            g=delta,
            mask=torch.ones_like(delta),
            background="zero",
            strength=1.0,
            gamma=None,
            picture=None,
        )
        return replace(backdoor, trigger=made)

    rho = rho_bad_diffusion(schedule)
    batches = PoisonedBatches(
        schedule,
        replace(planted(), targets=backdoor.targets.to(device)),
        Track(rho, residual_coefficient(schedule, rho, 0.0)),
        len(images),
        settings,
        training,
        eta=0.0,
        residual=lambda clean: trigger.delta.detach().expand_as(clean),
    )
    target = backdoor.targets[0].to(device)
    learner = InvisibleLearner(start, training, device, batches, trigger, target, settings)
    sampler = SamplerSettings("ddim", min(_ODE_STEPS, schedule.steps))
    history = train_poisoned(learner, images, planted, sampler, settings, run)
    rows = describe_rows(batches.rows)
    return DiffusionAttackResult(learner.model, history, sampler, planted(), rows)
