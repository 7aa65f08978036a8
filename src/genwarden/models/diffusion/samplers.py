"""Samplers as free functions that start from a given noise.

One entrance, :func:`sample`; the families are read beside their papers in ``ancestral`` (DDPM,
DDIM), ``multistep`` (DPM-Solver++ 2M, UniPC) and ``sigma_ode`` (Euler, Heun). Stock diffusers
pipelines accept no initial noise, which is where the trigger sits; hence loops of our own.

Nothing here switches gradients off: a trigger can be optimised through a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.ancestral import ddim, ddpm
from genwarden.models.diffusion.multistep import dpm_solver_pp, unipc
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.sampling import (
    Clip,
    Hook,
    SamplerName,
    SamplerSettings,
    Spacing,
    Step,
    pairs_of,
    timesteps_of,
)
from genwarden.models.diffusion.sigma_ode import euler, heun

__all__ = [
    "SAMPLERS",
    "Clip",
    "Hook",
    "SamplerName",
    "SamplerSettings",
    "Spacing",
    "Step",
    "ddim",
    "ddpm",
    "dpm_solver_pp",
    "euler",
    "heun",
    "pairs_of",
    "sample",
    "timesteps_of",
    "unipc",
]

#: Every sampler by its name in :class:`SamplerSettings`.
SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm-solver++": dpm_solver_pp,
    "unipc": unipc,
    "euler": euler,
    "heun": heun,
}


def sample(
    model: Diffusion,
    noise: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator | None = None,
    *,
    hook: Hook | None = None,
    timesteps: Sequence[int] | None = None,
) -> Tensor:
    """Turn an initial noise into images.

    Args:
        model: the denoiser.
        noise: x_T, ``(batch, C, H, W)``; N(0, I) for an ordinary user, plus the trigger for an
            attacker. It is taken as it is, also by the samplers of sigma space.
        settings: sampler, number of steps, randomness, clipping, spacing.
        generator: CPU stream of the noise added at each step; a deterministic sampler needs none.
        hook: called after every step with its :class:`Step`; a tensor that it returns replaces the
            step's result.
        timesteps: visit these (falling) instead of :func:`timesteps_of`; ``noise`` is then the
            state at the first of them.

    Returns:
        Images ``(batch, C, H, W)``, about [-1, 1] (not clamped unless ``settings.clip`` does).

    Raises:
        GenwardenError: ``usage/sampler-...``.
    """
    if settings.random and generator is None:
        raise GenwardenError(
            "usage/sampler-generator",
            f"The sampler {settings.name} (eta {settings.eta:g}) adds noise at every step.",
            "Pass a torch.Generator.",
        )
    visited = timesteps_of(model.schedule, settings) if timesteps is None else list(timesteps)
    pairs = pairs_of(visited, model.schedule)
    return SAMPLERS[settings.name](model, noise, pairs, settings, generator, hook)
