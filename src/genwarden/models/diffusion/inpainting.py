"""Inpainting by replacement with any one-step sampler (RePaint: Lugmayr et al., CVPR 2022).

The model is unconditional. At every step the pixels that the user has are replaced by a noisy
version of the user's image (Eqs. 8a-8c of RePaint); ``rounds`` repeats each step after diffusing
its result back (Algorithm 1 with jumps of one step), which harmonises the two regions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import SAMPLERS
from genwarden.models.diffusion.sampling import (
    Pair,
    SamplerSettings,
    pairs_of,
    step_noise,
    timesteps_of,
)

#: Samplers whose step looks at the present state alone.
_ONE_STEP = ("ddpm", "ddim")


def inpaint(
    model: Diffusion,
    image: Tensor,
    known: Tensor,
    start: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    *,
    rounds: int = 1,
) -> Tensor:
    """Complete images; known pixels come back unchanged.

    Args:
        model: the denoiser.
        image: what the user has, ``(batch, C, H, W)`` in [-1, 1]; read where ``known`` is 1.
        known: 1 where a pixel is kept, 0 where it is made; broadcasts to ``image``. Zeros
            everywhere are ordinary sampling from ``start``.
        start: x_T, ``(batch, C, H, W)``: N(0, I), or what BadDiffusion's user gives, the image with
            noise on it.
        settings: ``ddpm`` or ``ddim``.
        generator: CPU stream of all noises.
        rounds: times that every step but the last is taken.

    Returns:
        Images ``(batch, C, H, W)``, not clamped.

    Raises:
        GenwardenError: ``usage/inpainting`` for another sampler or fewer than one round.
    """
    if settings.name not in _ONE_STEP or rounds < 1:
        raise GenwardenError(
            "usage/inpainting",
            f"Inpainting cannot run with {settings.name} and {rounds} rounds.",
            f"Use one of {', '.join(_ONE_STEP)}, and at least one round.",
        )
    step = SAMPLERS[settings.name]
    x = start
    for pair in pairs_of(timesteps_of(model.schedule, settings), model.schedule):
        times = rounds if pair.t_next >= 0 else 1
        for number in range(times):
            made = step(model, x, [pair], settings, generator, None)
            kept = pair.a_next * image
            if pair.s_next > 0:
                kept = kept + pair.s_next * step_noise(image, generator)
            x = known * kept + (1 - known) * made
            if number + 1 < times:
                x = _diffused_back(x, pair, generator)
    return x


def _diffused_back(x: Tensor, pair: Pair, generator: torch.Generator) -> Tensor:
    """From t' to the noisier t: x_t = (a / a') x_t' + sqrt(1 - (a / a')^2) z."""
    share = pair.a / pair.a_next
    return share * x + math.sqrt(1 - share**2) * step_noise(x, generator)
