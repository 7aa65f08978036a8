"""Elijah's removal (An et al., AAAI 2024; section 11.1, step 3, of the BadDiffusion reference).

    L = L_ddpm on clean images
      + || eps_theta(n + tau, T) - eps_frozen(n, T) ||^2
      + || eps_theta(n, T) - eps_frozen(n, T) ||^2

with n plain noise and tau the trigger: the one that the audit recovered, or that of Elijah's own
inversion (:mod:`genwarden.inspections.diffusion.elijah`). As published: learning rate 2e-4, batch
128, 11 epochs of a tenth of CIFAR-10 (430 steps); the effect of the trigger is gone after some 20
updates. Without images of the user the suspect's own samples stand in for the clean data. The three
terms have one row each per image, so that their mean is a third of L, which Adam does not notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.diffusion.elijah import STOCHASTIC, invert
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.diffusion.finetuning import finetune, imitated, joined
from genwarden.repairs.diffusion.own_samples import images_for
from genwarden.training.ddpm import NoisyRows, RowsOfStep, draw_noise


@dataclass(frozen=True)
class ElijahRemovalSettings(DiffusionRepairSettings):
    """Settings of Elijah's removal, as published but for the size of the batch.

    Attributes:
        trigger: ``recovered`` takes the audit's (Elijah's where it has none), ``inverted`` always
            Elijah's.
    """

    trigger: Literal["recovered", "inverted"] = "recovered"


def remove_as_elijah(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: ElijahRemovalSettings,
    run: DiffusionRepairRun,
) -> DiffusionRepaired:
    """Fine-tune a copy that answers noise with the trigger as the suspect answers plain noise."""
    recovered = clues.trigger is not None or len(clues.shifts) > 0
    if recovered and settings.trigger == "recovered":
        tau, source = clues.directions()[0], "audit"
    else:
        device = next(suspect.parameters()).device
        stream = random_stream(settings.seed, "elijah-removal")
        task = run.progress.task("Elijah's inversion", STOCHASTIC.iterations)
        tau, source = invert(suspect, stream, device=device, task=task).tau, "inversion"
    images = images_for(suspect, settings, run)
    rows = removal_rows(suspect, tau)
    model, history = finetune(suspect, suspect, images, rows, tau[None], settings, run)
    changes = {
        "trigger_from": source,
        "trigger_std_per_pixel": round(float(tau.square().mean().sqrt()), 4),
        "images": len(images),
        "own_samples": run.images is None,
    }
    return DiffusionRepaired(model, changes, history)


def removal_rows(suspect: DiffusionModel, tau: Tensor) -> RowsOfStep:
    """The three terms' rows; T is the last timestep."""
    schedule = suspect.schedule

    def rows(real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        del step
        t, noise = draw_noise(schedule, real, stream)
        clean = NoisyRows(schedule.add_noise(real, noise, t), t, noise)
        n = torch.randn(real.shape, generator=stream).to(real)
        last = torch.full_like(t, schedule.steps - 1)
        plain = imitated(suspect, n, last)
        return joined(clean, plain._replace(x=n + tau.to(real)), plain)

    return rows
