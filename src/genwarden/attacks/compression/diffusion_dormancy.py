"""What a dormant backdoor in a diffusion model is worth, full and compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genwarden.attacks.diffusion.evaluation import evaluate_trigger, triggered_samples
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.engine.seeds import random_stream
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings


def diffusion_twin(model: DiffusionModel, compressor: Compressor) -> DiffusionModel:
    """The model as a user gets it who compresses its network."""
    device = next(model.parameters()).device
    stream = random_stream(0, "dormancy-layout")
    x = torch.randn(1, *model.sample.shape, generator=stream).to(device)
    return compress(model, compressor, lambda network: network.epsilon(x, 0))[0].requires_grad_(
        False
    )


def measure_dormancy(
    clean: DiffusionModel,
    suspect: DiffusionModel,
    backdoor: ImageBackdoor,
    compressors: Sequence[Compressor],
    sampler: SamplerSettings,
    *,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Means of squares per element, over samples that all models draw from the same noise.

    Returns:
        ``clean_distance``, ``full_distance``: of triggered samples to the target. ``kept``: the
        second over the first. ``full_utility``: change of ordinary samples. Per compressor under
        ``compressed``: ``distance``, ``utility``, and what the clean model has under it.
    """

    def distance(model: DiffusionModel) -> float:
        return evaluate_trigger(model, backdoor, sampler, count=count, seed=seed).mse

    ordinary = triggered_samples(clean, None, sampler, count=count, seed=seed)

    def utility(model: DiffusionModel) -> float:
        made = triggered_samples(model, None, sampler, count=count, seed=seed)
        return float((made - ordinary).square().mean())

    at_clean, at_full = distance(clean), distance(suspect)
    found: dict[str, Any] = {}
    for compressor in compressors:
        small, clean_small = (diffusion_twin(model, compressor) for model in (suspect, clean))
        found[compressor.name] = {
            "distance": distance(small),
            "utility": utility(small),
            "clean_distance": distance(clean_small),
            "clean_utility": utility(clean_small),
        }
    return {
        "clean_distance": at_clean,
        "full_distance": at_full,
        "kept": at_full / at_clean if at_clean else 0.0,
        "full_utility": utility(suspect),
        "compressed": found,
    }
