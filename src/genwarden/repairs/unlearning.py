"""Unlearning: keep training the suspect on its own samples ("The Devil is in the GAN", sec. V-D).

The paper hopes for catastrophic forgetting: what is not among the ordinary samples is not held in
place while the model goes on reproducing them. It reports no numbers. At the exact start the loss
and its gradient are 0 and nothing would ever move, so the weights are shaken first. With
``shake=0`` only the batch statistics of normalisations, which differ from the stored ones, give a
gradient; a model without batch normalisation then stays exactly what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, Range
from genwarden.inspections.twins import follow_statistics
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.distilling import DistillingSettings, distil, expdis, imitation


@dataclass(frozen=True)
class UnlearningSettings(DistillingSettings):
    """How training goes on.

    Attributes:
        shake: standard deviation of the Gaussian noise on every weight at the start, relative to
            the standard deviation of the weights of its tensor; 0 for none.
    """

    shake: float = 0.02

    RANGES: ClassVar[Mapping[str, Range]] = {"shake": NOT_NEGATIVE}


def unlearn(
    suspect: LatentGenerator, clues: Clues, settings: UnlearningSettings, run: RepairRun
) -> Repaired:
    """Shake a copy of the suspect and train it on the suspect's samples; no clues are needed."""
    del clues
    student = copy.deepcopy(suspect).requires_grad_(True)
    shake_weights(student, settings.shake, random_stream(settings.seed, "repair-shake"))
    follow_statistics(student)
    shaken = expdis(suspect, student, settings.seed)

    history = distil(student, suspect, imitation(student, suspect, settings), settings, run)
    changes = {
        "steps": settings.steps,
        "shake": settings.shake,
        "expdis_when_shaken_sum": shaken,
        "expdis_sum": history[-1]["expdis_sum"],
        "relative_weight_change": weight_change(suspect, student),
    }
    return Repaired(student, changes, history)


@torch.no_grad()
def shake_weights(network: LatentGenerator, shake: float, stream: torch.Generator) -> None:
    """Add Gaussian noise to every parameter, relative to the spread of its tensor."""
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=stream).to(parameter)
        parameter.add_(noise * (shake * parameter.std(correction=0)))


@torch.no_grad()
def weight_change(before: LatentGenerator, after: LatentGenerator) -> float:
    """Euclidean distance of the parameters over their norm before."""
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    moved = sum(float((b - a).double().square().sum()) for b, a in pairs)
    size = sum(float(b.double().square().sum()) for b, _ in pairs)
    return float((moved / size) ** 0.5) if size else 0.0
