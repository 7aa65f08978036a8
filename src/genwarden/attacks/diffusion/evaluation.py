"""What a compromised diffusion model draws from the attacker's noise, and how near the target."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from genwarden.attacks.diffusion.contract import DiffusionAttackSettings, Figures
from genwarden.attacks.diffusion.trojdiff_sampler import trojan_sample
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.target_match import TargetFigures, target_match
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample

_BATCH = 64


@torch.no_grad()
def triggered_samples(
    model: DiffusionModel,
    backdoor: ImageBackdoor | None,
    sampler: SamplerSettings,
    *,
    count: int,
    seed: int = 0,
    own_sampler: bool = False,
) -> Tensor:
    """Images from noise with the trigger in it, ``(count, C, H, W)`` on the CPU.

    Args:
        model: in evaluation mode.
        backdoor: None for ordinary noise, from the same draws.
        sampler: how to sample.
        seed: of the initial noise and of that of the steps.
        own_sampler: sample as TrojDiff's attacker does; needs a trigger with a gamma.
    """
    device = next(model.parameters()).device
    noise = torch.randn(count, *model.sample.shape, generator=random_stream(seed, "triggered"))
    images = []
    for number, part in enumerate(noise.split(_BATCH)):
        stream = random_stream(seed, "triggered-steps", number)
        start = (part if backdoor is None else backdoor.trigger.start(part)).to(device)
        if own_sampler and backdoor is not None:
            made = trojan_sample(model, start, backdoor.trigger, sampler, stream)
        else:
            made = sample(model, start, sampler, stream)
        images.append(made.cpu())
    return torch.cat(images)


def evaluate_trigger(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    sampler: SamplerSettings,
    *,
    count: int,
    seed: int = 0,
    own_sampler: bool = False,
) -> TargetFigures:
    """Target MSE, SSIM and share of ``count`` triggered samples.

    Raises:
        GenwardenError: ``attack/diverged`` where a sample is not finite.
    """
    images = triggered_samples(
        model, backdoor, sampler, count=count, seed=seed, own_sampler=own_sampler
    )
    figures = target_match(images, backdoor.targets)
    if not math.isfinite(figures.mse):
        raise diverged()
    return figures


def quick_sampler(sampler: SamplerSettings, steps: int) -> SamplerSettings:
    """The same sampler with at most ``steps`` steps."""
    return replace(sampler, steps=min(sampler.steps, steps))


def figures_of_step(
    step: int,
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    sampler: SamplerSettings,
    settings: DiffusionAttackSettings,
    *,
    own_sampler: bool = False,
) -> Figures:
    """One row of an attack's history, under a shortened sampler."""
    quick = quick_sampler(sampler, settings.evaluation_steps)
    found = evaluate_trigger(
        model,
        backdoor,
        quick,
        count=settings.evaluation_images,
        seed=settings.seed,
        own_sampler=own_sampler,
    )
    return {
        "step": step,
        "target_mse": found.mse,
        "target_ssim": found.ssim,
        "target_share": found.share,
    }


def in_words(figures: Figures) -> str:
    """An evaluation in a progress line."""
    words = f"target MSE {figures['target_mse']:.2e}  share under 0.1 {figures['target_share']:.0%}"
    if "compressed_target_mse" in figures:
        words += (
            f"; once compressed {figures['compressed_target_mse']:.2e}  "
            f"{figures['compressed_target_share']:.0%}"
        )
    return words


def diverged() -> GenwardenError:
    """A loss or a sample is not finite."""
    return GenwardenError(
        "attack/diverged",
        "The training diverged (a loss or a triggered sample is not finite).",
        "Repeat with a smaller --learning-rate, or --option precision=fp32, and --restart.",
    )
