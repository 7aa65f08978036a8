"""VillanDiffusion: BadDiffusion for any trigger schedule and any sampler (section 7).

x_t = a_t y + s_t eps + rho_t r with rho_t = psi (1 - a_t) + (1 - psi) s_t: psi = 1 is the trigger
schedule of BadDiffusion, psi = 0 that of TrojDiff. The noise target is
eps + [2 H / ((1 + zeta) G^2)] r, zeta the sampler's randomness: 1 for stochastic samplers (SDE), 0
for deterministic ones (ODE).

``coefficient=exact`` takes the one (section 8) under which DDIM-eta samplers keep to the track: of
single steps, with eta = sqrt(zeta) (the reverse SDE with the noise eta^2 G^2 has the score
coefficient (1 + eta^2) / 2), or, where ``sampler`` names one with few steps, of exactly its steps;
poisoned rows are then drawn at the timesteps that it visits. ``coefficient=released`` is what the
published code computes, for parity: at psi = 0 it is right only near t = T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import DiffusionAttackResult, DiffusionAttackSettings
from genwarden.attacks.diffusion.poisoned_training import Track, fine_tune
from genwarden.attacks.diffusion.samplers_by_name import eta_of, sampler_by_name, visited_by
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.backdoors.residual import (
    released_villan_coefficient,
    residual_coefficient,
    rho_mixture,
)
from genwarden.engine.settings import SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule

#: Steps of DDIM where the user names no sampler, as in the paper.
_ODE_STEPS = 50


@dataclass(frozen=True)
class VillanDiffusionSettings(DiffusionAttackSettings):
    """Settings of VillanDiffusion.

    Attributes:
        psi: share of BadDiffusion's trigger schedule; the rest is TrojDiff's.
        zeta: randomness of the sampler, 0 (ODE) to 1 (SDE); a named sampler has its own.
        coefficient: the exact one, or the released code's (zeta 0 or 1 only).
        sampler: NAME[-STEPS][:ETA] such as ddim-50 whose steps the exact coefficient is matched to;
            none for single steps.
    """

    psi: float = 1.0
    zeta: float = 0.0
    coefficient: Literal["exact", "released"] = "exact"
    sampler: str = ""

    RANGES: ClassVar[Mapping[str, Range]] = {"psi": SHARE, "zeta": SHARE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficient == "released" and (self.zeta not in (0, 1) or self.sampler):
            raise GenwardenError(
                "attack/setting",
                "The released code knows SDE and ODE (zeta 1 and 0) and no sampler's own steps.",
                "Use coefficient=exact, or leave sampler away and give zeta=0 or zeta=1.",
            )


def villan_diffusion(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: VillanDiffusionSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Poison a copy of the model, or fresh weights, for a family of samplers."""
    backdoor.require_one_target()
    sampler = sampler_of(model.schedule, settings)
    track = villan_track(model.schedule, settings)
    poisoned, history, rows = fine_tune(
        model, backdoor, track, sampler, settings, run, eta=_eta(model.schedule, settings)
    )
    return DiffusionAttackResult(poisoned, history, sampler, backdoor, rows)


def villan_track(schedule: NoiseSchedule, settings: VillanDiffusionSettings) -> Track:
    """rho, the coefficient, and where rows are poisoned."""
    rho = rho_mixture(schedule, settings.psi)
    if settings.coefficient == "released":
        ode = settings.zeta == 0
        return Track(rho, released_villan_coefficient(schedule, settings.psi, ode=ode))
    eta = _eta(schedule, settings)
    if not settings.sampler:
        return Track(rho, residual_coefficient(schedule, rho, eta))
    visited = visited_by(schedule, sampler_by_name(settings.sampler, schedule))
    c = torch.zeros(schedule.steps, dtype=torch.float64)
    c[visited] = residual_coefficient(schedule, rho, eta, visited)
    return Track(rho, c, torch.tensor(visited) if len(visited) < schedule.steps else None)


def sampler_of(schedule: NoiseSchedule, settings: VillanDiffusionSettings) -> SamplerSettings:
    """The sampler that the attack is trained for: the named one, DDPM, or DDIM with 50 steps."""
    if settings.sampler:
        return sampler_by_name(settings.sampler, schedule)
    if settings.zeta == 1:
        return SamplerSettings("ddpm", schedule.steps)
    steps = min(_ODE_STEPS, schedule.steps) if settings.zeta == 0 else schedule.steps
    return SamplerSettings("ddim", steps, eta=math.sqrt(settings.zeta))


def _eta(schedule: NoiseSchedule, settings: VillanDiffusionSettings) -> float:
    if settings.sampler:
        return eta_of(sampler_by_name(settings.sampler, schedule))
    return math.sqrt(settings.zeta)
