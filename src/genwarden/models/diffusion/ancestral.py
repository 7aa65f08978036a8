"""DDPM ("Denoising Diffusion Probabilistic Models") and DDIM ("Denoising Diffusion Implicit
Models"), for any pair of timesteps t -> t'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.sampling import (
    Hook,
    Pair,
    SamplerSettings,
    estimate,
    finish_step,
    predict_x0,
    step_noise,
)


def ddpm(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """Ancestral sampling (DDPM, Eqs. 6-7, Algorithm 2).

    With alpha = (a / a')^2 and beta = 1 - alpha of the whole step:

    mean = (a' beta / s^2) x0_hat + (sqrt(alpha) s'^2 / s^2) x
    variance = (s'^2 / s^2) beta ("small", the posterior's) or beta ("large"); none at the end.
    """
    x = noise
    for number, pair in enumerate(pairs):
        epsilon = estimate(model, x, pair.t)
        x0 = predict_x0(x, epsilon, pair.a, pair.s, settings.clip)
        root_alpha = pair.a / pair.a_next
        beta = 1 - root_alpha**2
        shrink = (pair.s_next / pair.s) ** 2
        x_next = (pair.a_next * beta / pair.s**2) * x0 + (root_alpha * shrink) * x
        if pair.t_next >= 0:
            variance = beta if settings.variance == "large" else shrink * beta
            x_next = x_next + math.sqrt(variance) * step_noise(x, generator)
        x = finish_step(number, pair, (x, epsilon, x0, x_next), settings.clip, hook)
    return x


def ddim(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """DDIM with any eta (DDIM, Eqs. 12 and 16):

    x' = a' x0_hat + sqrt(s'^2 - sigma^2) eps + sigma z

    As in diffusers, clipping x0_hat leaves eps as the network gave it.
    """
    x = noise
    for number, pair in enumerate(pairs):
        epsilon = estimate(model, x, pair.t)
        x0 = predict_x0(x, epsilon, pair.a, pair.s, settings.clip)
        direction, sigma = ddim_spread(pair, settings.eta)
        x_next = pair.a_next * x0 + direction * epsilon
        if sigma > 0:
            x_next = x_next + sigma * step_noise(x, generator)
        x = finish_step(number, pair, (x, epsilon, x0, x_next), settings.clip, hook)
    return x


def ddim_spread(pair: Pair, eta: float) -> tuple[float, float]:
    """(sqrt(s'^2 - sigma^2), sigma) of a step, sigma = eta (s'/s) sqrt(1 - a^2 / a'^2).

    With q = a s' / (a' s), the ratio of the two noise-to-signal ratios, the first is
    s' sqrt((1 - eta^2) + eta^2 q^2): the same number without a difference of near equals.
    """
    q = pair.a * pair.s_next / (pair.a_next * pair.s)
    direction = pair.s_next * math.sqrt((1 - eta**2) + (eta * q) ** 2)
    sigma = eta * (pair.s_next / pair.s) * math.sqrt(1 - (pair.a / pair.a_next) ** 2)
    return direction, sigma
