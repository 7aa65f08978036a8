"""Samplers as an attacker names them, and how random each is for the residual coefficient."""

from __future__ import annotations

import re
from typing import Final, cast

import torch
from torch import Tensor

from genwarden.backdoors.residual import residual_coefficient
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.samplers import (
    SAMPLERS,
    SamplerName,
    SamplerSettings,
    timesteps_of,
)
from genwarden.models.diffusion.schedule import NoiseSchedule

_FORM: Final = re.compile(r"([a-z+-]+?)(?:-(\d+))?(?::(\d*\.?\d+))?")
#: Solvers of the probability-flow ODE: of higher order, they follow it and not the DDIM step.
_ODE_SOLVERS: Final = ("dpm-solver++", "unipc", "euler", "heun")


def sampler_by_name(text: str, schedule: NoiseSchedule) -> SamplerSettings:
    """A sampler from ``NAME[-STEPS][:ETA]``: ``ddpm``, ``ddim-50``, ``ddim-50:0.5``.

    Without STEPS every timestep is visited; ETA is for ddim.

    Raises:
        GenwardenError: ``usage/sampler-name``, ``usage/sampler-steps``.
    """
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in SAMPLERS or (match[3] and match[1] != "ddim"):
        raise GenwardenError(
            "usage/sampler-name",
            f"{text!r} names no sampler.",
            f"Write NAME[-STEPS], or ddim[-STEPS][:ETA]; names: {', '.join(SAMPLERS)}.",
        )
    settings = SamplerSettings(
        cast(SamplerName, match[1]),
        int(match[2]) if match[2] else schedule.steps,
        float(match[3] or 0.0),
    )
    timesteps_of(schedule, settings)
    return settings


def eta_of(sampler: SamplerSettings) -> float:
    """Its eta in :func:`residual_coefficient`: the ancestral step is DDIM with eta = 1."""
    if sampler.name == "ddpm":
        return 1.0
    return sampler.eta if sampler.name == "ddim" else 0.0


def visited_by(schedule: NoiseSchedule, sampler: SamplerSettings) -> list[int]:
    """Timesteps between which the coefficient of a sampler is taken, falling.

    A solver of higher order follows the ODE itself, whose coefficient is that of single steps.
    """
    if sampler.name in _ODE_SOLVERS:
        return list(range(schedule.steps - 1, -1, -1))
    return timesteps_of(schedule, sampler)


def coefficient_at_all(schedule: NoiseSchedule, rho: Tensor, sampler: SamplerSettings) -> Tensor:
    """c(t -> t') of a sampler's own steps, between them on a line, float64 ``(T,)``.

    Where every timestep is visited nothing is interpolated.
    """
    visited = visited_by(schedule, sampler)
    c = residual_coefficient(schedule, rho, eta_of(sampler), visited).flip(0)
    t = torch.tensor(visited[::-1], dtype=torch.float64)
    if len(t) == 1:
        return c.expand(schedule.steps).clone()
    at = torch.arange(schedule.steps, dtype=torch.float64)
    right = torch.searchsorted(t, at).clamp(1, len(t) - 1)
    share = ((at - t[right - 1]) / (t[right] - t[right - 1])).clamp(0, 1)
    return torch.lerp(c[right - 1], c[right], share)
