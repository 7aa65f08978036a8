"""What a repair of a classifier takes and returns.

It gets what a defender has: the suspect and clean images with their classes; never a trigger, a
target class or a benign original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from genwarden.engine.settings import ANY, COUNT, POSITIVE, Range, Settings
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.repairs.contract import RepairRun


@dataclass(frozen=True)
class ClassifierRepairSettings(Settings):
    """Settings that every repair of a classifier has.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: of the optimiser.
        crop: shift the images by up to 4 px at 32 px, as in training.
        evaluate_every: steps between two rows of the history and checkpoints.
        seed: run seed; every random act derives from it.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 0.01
    crop: bool = True
    evaluate_every: int = 100
    seed: int = 0

    CODE: ClassVar[str] = "repair"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": Range(at_least=2),
        "learning_rate": POSITIVE,
        "evaluate_every": COUNT,
        "seed": ANY,
    }


class LabelledData(NamedTuple):
    """A user's clean images, uint8 ``(count, C, H, W)``, and their classes, int64 ``(count,)``."""

    images: Tensor
    labels: Tensor


class RepairedClassifier(NamedTuple):
    """The repaired classifier and how it came about.

    Attributes:
        classifier: a new network in evaluation mode, frozen, on the suspect's device.
        changes: what was done, in plain numbers and words for ``repair.json``.
        history: ``step`` and ``loss`` (mean since the row before).
    """

    classifier: ImageClassifier
    changes: dict[str, Any]
    history: list[dict[str, float]]


class ClassifierRepair(Protocol):
    """One remedy."""

    def __call__(
        self, suspect: ImageClassifier, data: LabelledData, settings: Any, run: RepairRun
    ) -> RepairedClassifier:
        """Return a new network; the suspect stays as it is."""
        ...
