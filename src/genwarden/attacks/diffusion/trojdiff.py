"""TrojDiff (section 10 of the reference): triggers blended with the noise, and a sampler to match.

The trojan marginal is x_t = a_t x_0 + s_t (gamma eps + mu) with mu = (1 - gamma) delta, delta the
trigger's picture: on all pixels (``blend:NAME``, gamma 0.6) or on those of a patch only (gamma 0.1
and 1 elsewhere). The network estimates the plain eps; the attacker's own sampler
(:mod:`genwarden.attacks.diffusion.trojdiff_sampler`) subtracts gamma and mu.

Three kinds of target: one image (D2I), a class of the training data (In-D2D, ``class:7``), or a
class of another data set (Out-D2D, ``class:8:DATA`` or a folder). Trojan rows are *appended* to
each batch: no training image leaves the clean set. The published In-D2D network takes the class as
an input; ours is unconditional. The loss is the mean, not the sum, over elements, which Adam and
the clipped gradient turn into the same steps; t comes in pairs t, T - 1 - t as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import DiffusionAttackResult, DiffusionAttackSettings
from genwarden.attacks.diffusion.poisoned_training import (
    start_of_training,
    train_poisoned,
    training_images,
)
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.engine.settings import Range
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.training.ddpm import DenoiserLearner, NoisyRows

#: Steps of the deterministic sampler in the paper.
_DDIM_STEPS = 100


@dataclass(frozen=True)
class TrojDiffSettings(DiffusionAttackSettings):
    """Settings of TrojDiff.

    Attributes:
        poison_rate: trojan rows that are appended to a batch, as a share of it.
        gamma: what the noise is multiplied with where the trigger lies; 0.6 for a blend, 0.1 for a
            patch in the paper.
        own_sampler: the attacker's sampler for the evaluation.
    """

    gamma: float = 0.6
    own_sampler: Literal["ddim", "ddpm"] = "ddim"

    RANGES: ClassVar[Mapping[str, Range]] = {"gamma": Range(at_least=0, below=1)}


class TrojanBatches:
    """DDPM's rows, and trojan rows behind them.

    Args:
        backdoor: with a blended trigger, and its targets on the device.
        rate: trojan rows per batch, as a share of it.
    """

    def __init__(self, schedule: NoiseSchedule, backdoor: ImageBackdoor, rate: float) -> None:
        self.schedule, self.backdoor, self.rate = schedule, backdoor, rate

    def __call__(self, real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        """The rows of one step."""
        # Rows that a batch cannot hold in part are made up for in the next one.
        number = int(self.rate * len(real) * (step + 1)) - int(self.rate * len(real) * step)
        y = self.backdoor.draw(number, generator=stream).to(real)
        images = torch.cat([real, y])
        half = torch.randint(self.schedule.steps, ((len(images) + 1) // 2,), generator=stream)
        t = torch.cat([half, self.schedule.steps - 1 - half])
        # A pair would otherwise put t into the clean and T - 1 - t into the trojan rows.
        t = t[torch.randperm(len(t), generator=stream)][: len(images)].to(real.device)
        noise = torch.randn(images.shape, generator=stream).to(real)
        x = self.schedule.add_noise(images, noise, t)
        x[len(real) :] = self.poison(y, noise[len(real) :], t[len(real) :]).x
        return NoisyRows(x, t, noise)

    def poison(self, y: Tensor, noise: Tensor, t: Tensor) -> NoisyRows:
        """Trojan rows of the given targets, noises and timesteps."""
        shifted = self.backdoor.trigger.start(noise)
        return NoisyRows(self.schedule.add_noise(y, shifted, t), t, noise)


def trojdiff(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: TrojDiffSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Train a copy of the model, or fresh weights, with trojan rows in every batch."""
    backdoor.require_fit(model.sample)
    images = training_images(run, model)
    blended = replace(backdoor, trigger=backdoor.trigger.trojan(settings.gamma))
    start, training = start_of_training(model, settings)
    device = next(start.parameters()).device
    batches = TrojanBatches(model.schedule, blended.to(device), settings.poison_rate)
    learner = DenoiserLearner(start, training, device, batches)
    steps = model.schedule.steps
    few = settings.own_sampler == "ddim"
    sampler = SamplerSettings(settings.own_sampler, min(_DDIM_STEPS, steps) if few else steps)
    history = train_poisoned(
        learner, images, lambda: blended, sampler, settings, run, own_sampler=True
    )
    return DiffusionAttackResult(
        learner.model, history, sampler, blended, rows=None, own_sampler=True
    )
