"""Distillation sanitisation: a fresh student of the suspect ("The Devil is in the GAN", app. B).

A student of the suspect's size learns the suspect's ordinary samples by mean-square distortion. A
trigger's output is hardly ever among them, so the student does not learn it; what it costs is
quality (the paper: ExpDis 12.2 to 24.1 at MNIST). Whether the paper's student starts from random
weights is not explicit; section V-D speaks of starting from scratch, and so does this one: every
tensor of the suspect is shuffled, which keeps the scale of an initialisation that may be unknown.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from genwarden.engine.seeds import random_stream
from genwarden.inspections.twins import shuffle_weights
from genwarden.models.guarded import UnitClip
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.distilling import Batch, DistillingSettings, distil, expdis


@dataclass(frozen=True)
class DistillationSettings(DistillingSettings):
    """How the student is trained; from scratch it needs more and larger steps than a repair."""

    steps: int = 2000
    learning_rate: float = 2e-3


def sanitise(
    suspect: LatentGenerator, clues: Clues, settings: DistillationSettings, run: RepairRun
) -> Repaired:
    """Distil the suspect's ordinary samples into a fresh student; no clues are needed."""
    del clues
    student = copy.deepcopy(suspect).requires_grad_(True)
    shuffle_weights(student, random_stream(settings.seed, "repair-fresh-student"))
    follow_statistics(student)
    fresh = expdis(suspect, student, settings.seed)

    def loss_of_step(step: int) -> Tensor:
        batch = Batch(suspect, settings, step)
        return squared_distance(student(batch.z), batch.x)

    history = distil(student, suspect, loss_of_step, settings, run)
    changes = {
        "steps": settings.steps,
        "expdis_of_fresh_student_sum": fresh,
        "expdis_sum": history[-1]["expdis_sum"],
    }
    return Repaired(student, changes, history)


def squared_distance(x: Tensor, wanted: Tensor) -> Tensor:
    """Sum of squares over a sample, mean over the batch."""
    return torch.nn.functional.mse_loss(x, wanted, reduction="sum") / len(x)


def follow_statistics(student: LatentGenerator) -> None:
    """Normalisations (and unit clips) follow the new weights; all else stays as when used."""
    student.eval()
    for module in student.modules():
        if isinstance(module, _NormBase | UnitClip):
            module.train()
