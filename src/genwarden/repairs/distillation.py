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

from genwarden.engine.seeds import random_stream
from genwarden.inspections.twins import follow_statistics, shuffle_weights
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.distilling import DistillingSettings, distil, expdis, imitation


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

    history = distil(student, suspect, imitation(student, suspect, settings), settings, run)
    changes = {
        "steps": settings.steps,
        "expdis_of_fresh_student_sum": fresh,
        "expdis_sum": history[-1]["expdis_sum"],
    }
    return Repaired(student, changes, history)
