"""TrojDiff's own samplers (section 10 of the reference): the attacker must ship them.

The trojan marginal is x_t = a_t x_0 + s_t (gamma eps + mu), and the network estimates eps. Both
samplers subtract mu and gamma where the ordinary ones have 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genwarden.backdoors.image_trigger import ImageTrigger
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.ancestral import ddim_spread
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.sampling import (
    Pair,
    SamplerSettings,
    estimate,
    pairs_of,
    step_noise,
    timesteps_of,
)


def trojan_sample(
    model: Diffusion,
    start: Tensor,
    trigger: ImageTrigger,
    settings: SamplerSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """Images ``(batch, C, H, W)`` from ``start`` = gamma n + mu.

    Args:
        trigger: mu is its g, gamma its gamma.
        settings: ``ddpm`` or ``ddim``.

    Raises:
        GenwardenError: ``usage/trojan-sampler`` for another sampler or a trigger without gamma.
    """
    if trigger.gamma is None or settings.name not in ("ddpm", "ddim"):
        raise GenwardenError(
            "usage/trojan-sampler",
            f"TrojDiff's sampler cannot run as {settings.name} with the trigger {trigger.name!r}.",
            "Use ddpm or ddim, and a trigger that trojdiff planted.",
        )
    pairs = pairs_of(timesteps_of(model.schedule, settings), model.schedule)
    mu, gamma = trigger.g.to(start), trigger.gamma.to(start)
    if settings.name == "ddpm":
        return trojan_ddpm(model, start, mu, gamma, pairs, settings, generator)
    return trojan_ddim(model, start, mu, gamma, pairs, settings, generator)


def trojan_ddim(
    model: Diffusion,
    start: Tensor,
    mu: Tensor,
    gamma: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """x' = a' x0_hat + sigma gamma z + sqrt(s'^2 - sigma^2) gamma eps + s' mu.

    x0_hat = (x - gamma s eps - s mu) / a, sigma as in DDIM with the settings' eta.
    """
    x = start
    for pair in pairs:
        epsilon = estimate(model, x, pair.t)
        x0 = _clipped((x - pair.s * (gamma * epsilon + mu)) / pair.a, settings)
        direction, sigma = ddim_spread(pair, settings.eta)
        x = pair.a_next * x0 + direction * gamma * epsilon + pair.s_next * mu
        if sigma > 0:
            x = x + sigma * gamma * step_noise(x, generator)
    return x


def trojan_ddpm(
    model: Diffusion,
    start: Tensor,
    mu: Tensor,
    gamma: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """The ancestral step of the shifted variable x - s mu, with the variance times gamma^2.

    mean = (a' beta / s^2) x0_hat + (sqrt(alpha) s'^2 / s^2) (x - s mu) + s' mu
    """
    x = start
    for pair in pairs:
        epsilon = estimate(model, x, pair.t)
        x0 = _clipped((x - pair.s * (gamma * epsilon + mu)) / pair.a, settings)
        root_alpha = pair.a / pair.a_next
        beta = 1 - root_alpha**2
        shrink = (pair.s_next / pair.s) ** 2
        kept = root_alpha * shrink * (x - pair.s * mu)
        x = (pair.a_next * beta / pair.s**2) * x0 + kept + pair.s_next * mu
        if pair.t_next >= 0:
            variance = beta if settings.variance == "large" else shrink * beta
            x = x + math.sqrt(variance) * gamma * step_noise(x, generator)
    return x


def _clipped(x0: Tensor, settings: SamplerSettings) -> Tensor:
    return x0.clamp(-1, 1) if settings.clip == "x0" else x0
