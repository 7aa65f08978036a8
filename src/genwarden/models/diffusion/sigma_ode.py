"""Euler and Heun steps of the probability-flow ODE in sigma space ("Elucidating the Design Space
of Diffusion-Based Generative Models", Algorithm 1 without churn).

With X = x / a and sigma = s / a the ODE is dX / dsigma = (X - x0_hat) / sigma, which is eps as long
as x0_hat is not clipped. States shown to hooks are x, as for every other sampler.
"""

from __future__ import annotations

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
)


def euler(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """X' = X + (sigma' - sigma) dX / dsigma."""
    del generator
    x = noise
    for number, pair in enumerate(pairs):
        sigma, sigma_next = pair.s / pair.a, pair.s_next / pair.a_next
        epsilon = estimate(model, x, pair.t)
        x0 = predict_x0(x, epsilon, pair.a, pair.s, settings.clip)
        slope = (x / pair.a - x0) / sigma
        x_next = pair.a_next * (x / pair.a + (sigma_next - sigma) * slope)
        x = finish_step(number, pair, (x, epsilon, x0, x_next), settings.clip, hook)
    return x


def heun(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """Euler, then the mean of the slopes at both ends; the last step, to sigma = 0, is Euler's."""
    del generator
    x = noise
    for number, pair in enumerate(pairs):
        sigma, sigma_next = pair.s / pair.a, pair.s_next / pair.a_next
        epsilon = estimate(model, x, pair.t)
        x0 = predict_x0(x, epsilon, pair.a, pair.s, settings.clip)
        slope = (x / pair.a - x0) / sigma
        x_next = pair.a_next * (x / pair.a + (sigma_next - sigma) * slope)
        if pair.t_next >= 0:
            epsilon_next = estimate(model, x_next, pair.t_next)
            x0_next = predict_x0(x_next, epsilon_next, pair.a_next, pair.s_next, settings.clip)
            slope_next = (x_next / pair.a_next - x0_next) / sigma_next
            mean = (slope + slope_next) / 2
            x_next = pair.a_next * (x / pair.a + (sigma_next - sigma) * mean)
        x = finish_step(number, pair, (x, epsilon, x0, x_next), settings.clip, hook)
    return x
