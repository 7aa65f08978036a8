"""Super-fine-tuning: plain fine-tuning under a learning rate that goes up and down steeply.

Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks" (2212.09067; compression
reference, section 2c): cross entropy, SGD, a triangular learning rate of ten iterations up and ten
down from the base 0.03, to 2.5 in the first 40 epochs and to 0.05 afterwards. The high peaks throw
out what the clean images do not need; the low ones bring accuracy back.

Small networks may not survive peaks of 2.5 in few steps: ``changes`` and ``repair.json`` show
accuracy, and ``--option peak=`` lowers them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from genwarden.engine.settings import COUNT, POSITIVE, SHARE, Range
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.repairs.classifier.contract import (
    ClassifierRepairSettings,
    LabelledData,
    RepairedClassifier,
)
from genwarden.repairs.classifier.training import train
from genwarden.repairs.contract import RepairRun


@dataclass(frozen=True)
class SuperFineTuningSettings(ClassifierRepairSettings):
    """The triangles; ``learning_rate`` is their base.

    Attributes:
        peak: learning rate at the top of a triangle in the first phase.
        later_peak: in the second phase.
        first_phase: share of the steps (published: 40 of 100 epochs).
        half_period: steps up, and steps down.
    """

    steps: int = 1000
    learning_rate: float = 0.03
    peak: float = 2.5
    later_peak: float = 0.05
    first_phase: float = 0.4
    half_period: int = 10

    RANGES: ClassVar[Mapping[str, Range]] = {
        "peak": POSITIVE,
        "later_peak": POSITIVE,
        "first_phase": SHARE,
        "half_period": COUNT,
    }

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        first = step < round(self.first_phase * self.steps)
        peak = self.peak if first else self.later_peak
        position = step % (2 * self.half_period)
        height = 1 - abs(position - self.half_period) / self.half_period
        return self.learning_rate + (peak - self.learning_rate) * height


def super_fine_tune(
    suspect: ImageClassifier, data: LabelledData, settings: SuperFineTuningSettings, run: RepairRun
) -> RepairedClassifier:
    """Fine-tune a copy under the triangles.

    Raises:
        GenwardenError: ``repair/diverged``.
    """
    student = copy.deepcopy(suspect)
    history = train(
        student,
        torch.optim.SGD(student.parameters(), settings.learning_rate),
        lambda x, y, _: F.cross_entropy(student(x), y),
        data,
        settings,
        run,
        title="super-fine-tuning",
        rate=settings.rate,
    )
    return RepairedClassifier(student, {"peak": settings.peak}, history)
