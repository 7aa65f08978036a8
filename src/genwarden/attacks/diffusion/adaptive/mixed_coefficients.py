"""One backdoor for several samplers: the mean of their residual coefficients.

A coefficient fits one sampler (section 8 of the reference), and a defender who changes the sampler
disarms the backdoor. The mean of the coefficients over a set of samplers fits none of them exactly,
but the network corrects small errors on its way, so that the trigger survives the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import DiffusionAttackResult, DiffusionAttackSettings
from genwarden.attacks.diffusion.poisoned_training import Track, fine_tune
from genwarden.attacks.diffusion.samplers_by_name import (
    coefficient_at_all,
    eta_of,
    sampler_by_name,
)
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.backdoors.residual import rho_mixture
from genwarden.engine.settings import SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel


@dataclass(frozen=True)
class MixedCoefficientsSettings(DiffusionAttackSettings):
    """Settings of the mixture.

    Attributes:
        samplers: names as in villan-diffusion's ``sampler``, separated by commas; the evaluation
            uses the first.
        psi: share of BadDiffusion's trigger schedule; the rest is TrojDiff's.
    """

    samplers: tuple[str, ...] = ("ddim-50", "ddpm")
    psi: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {"psi": SHARE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.samplers:
            raise GenwardenError(
                "attack/setting",
                "A mixture needs at least one sampler.",
                "Give samplers=ddim-50,ddpm.",
            )


def mixed_coefficients(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    settings: MixedCoefficientsSettings,
    run: AttackRun,
) -> DiffusionAttackResult:
    """Poison a copy of the model, or fresh weights, for several samplers at once."""
    backdoor.require_one_target()
    schedule = model.schedule
    samplers = [sampler_by_name(name, schedule) for name in settings.samplers]
    rho = rho_mixture(schedule, settings.psi)
    each = torch.stack([coefficient_at_all(schedule, rho, sampler) for sampler in samplers])
    eta = sum(eta_of(sampler) for sampler in samplers) / len(samplers)
    poisoned, history, rows = fine_tune(
        model, backdoor, Track(rho, each.mean(0)), samplers[0], settings, run, eta=eta
    )
    return DiffusionAttackResult(poisoned, history, samplers[0], backdoor, rows)
