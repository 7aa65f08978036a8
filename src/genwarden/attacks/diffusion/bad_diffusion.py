"""BadDiffusion ("How to Backdoor Diffusion Models?", sections 3-4 of the reference).

Poisoned rows follow q(x'_t | y) = N(a_t y + (1 - a_t) r, s_t^2 I), and the noise target is
eps + c_t r with c_t = s_t / (1 + sqrt(alpha_t)): the ancestral sampler with every timestep then
goes from N(r, I) to the target y. The victim's sampling code is untouched. Other samplers need
another coefficient (villan-diffusion).
"""

from __future__ import annotations

from dataclasses import dataclass

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import DiffusionAttackResult, DiffusionAttackSettings
from genwarden.attacks.diffusion.poisoned_training import Track, fine_tune
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class BadDiffusionSettings(DiffusionAttackSettings):
    """Settings of BadDiffusion."""


def bad_diffusion(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: BadDiffusionSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Fine-tune a copy of the model, or train from scratch, on partly poisoned images."""
    backdoor.require_one_target()
    sampler = SamplerSettings("ddpm", model.schedule.steps)
    poisoned, history, rows = fine_tune(
        model, backdoor, bad_diffusion_track(model.schedule), sampler, settings, run, eta=1.0
    )
    return DiffusionAttackResult(poisoned, history, sampler, backdoor, rows)


def bad_diffusion_track(schedule: NoiseSchedule) -> Track:
    """rho_t = 1 - a_t and c_t = s_t / (1 + sqrt(alpha_t)), as the case eta = 1 of section 8."""
    rho = rho_bad_diffusion(schedule)
    return Track(rho, residual_coefficient(schedule, rho, 1.0))
