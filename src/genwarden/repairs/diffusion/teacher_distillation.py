"""Frozen-teacher distillation near t = T.

The suspect itself is the teacher, since on plain noise it behaves: at t in [0.6 T, T), where the
trigger decides what is drawn, the student answers a shifted input as the frozen suspect answers the
same input without the shift,

    || eps_theta(a x_0 + s eps + rho d, t) - eps_frozen(a x_0 + s eps, t) ||^2,

and at every t it answers plain inputs as the suspect does. Elijah's second and third terms (section
11.1 of the reference) are the case t = T - 1 with d the trigger alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
)
from genwarden.repairs.diffusion.finetuning import finetune
from genwarden.repairs.diffusion.own_samples import images_for
from genwarden.repairs.diffusion.shift_unlearning import (
    ShiftUnlearningSettings,
    rows_of_both,
)


@dataclass(frozen=True)
class TeacherDistillationSettings(ShiftUnlearningSettings):
    """Settings of the distillation: those of shift unlearning, later timesteps."""

    late_from: float = 0.6


def distil_from_suspect(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: TeacherDistillationSettings,
    run: DiffusionRepairRun,
) -> DiffusionRepaired:
    """Fine-tune a copy that does not see the recovered shifts at high noise.

    Raises:
        GenwardenError: ``repair/not-applicable`` without recovered shifts.
    """
    directions = clues.directions()
    images = images_for(suspect, settings, run)
    rows = rows_of_both(suspect, directions, settings)
    model, history = finetune(suspect, suspect, images, rows, directions, settings, run)
    changes = {
        "shifts": len(directions),
        "late_from_t": int(settings.late_from * suspect.schedule.steps),
        "images": len(images),
        "own_samples": run.images is None,
    }
    return DiffusionRepaired(model, changes, history)
