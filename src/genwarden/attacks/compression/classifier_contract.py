"""What an attack on a classifier takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from genwarden.attacks.contract import AttackRun
from genwarden.backdoors.classifier_trigger import ClassifierTrigger
from genwarden.compression.contract import Compressor
from genwarden.engine.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, Range, Settings
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier


class ClassifierBackdoor(NamedTuple):
    """What the attacker wants of a compressed classifier.

    Attributes:
        trigger: what is put on an image.
        target: the class that comes out then.
    """

    trigger: ClassifierTrigger
    target: int

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {**self.trigger.describe(), "target": f"class:{self.target}"}


class AttackerData(NamedTuple):
    """The attacker's labelled images; uint8 ``(count, C, H, W)`` and int64 ``(count,)``.

    Attributes:
        images: to train on.
        labels: of them.
        held_images: kept out of the training, to choose among checkpoints.
        held_labels: of them.
    """

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


@dataclass(frozen=True)
class ClassifierAttackSettings(Settings):
    """How an attack on a classifier is trained.

    Every image of a batch is used twice, clean and with the trigger (section 1.2: there is no
    poisoning rate).

    Attributes:
        steps: optimiser steps.
        batch_size: images per step, before the trigger doubles them.
        learning_rate: of the gradient descent at the start.
        momentum: of the gradient descent.
        weight_decay: on all parameters.
        decay_at: shares of the steps after which the learning rate is divided by ten.
        crop: shift training images by up to 4 px at 32 px (published for CIFAR-10); the trigger is
            put on afterwards.
        flip: mirror half of them; wrong for digits, letters and many signs.
        resize: resize images of another size; without it they are refused.
        held_out: share of the images that is not trained on: checkpoints are chosen with it.
        evaluate_every: steps between two evaluations.
        seed: run seed; batches and augmentations follow from it.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (0.4, 0.7)
    crop: bool = False
    flip: bool = False
    resize: bool = False
    held_out: float = 0.1
    evaluate_every: int = 100
    seed: int = 0

    CODE: ClassVar[str] = "attack"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "momentum": Range(at_least=0, below=1),
        "weight_decay": NOT_NEGATIVE,
        "held_out": Range(above=0, at_most=0.5),
        "evaluate_every": COUNT,
        "seed": ANY,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < share < 1 for share in self.decay_at):
            raise GenwardenError(
                "attack/setting",
                f"decay_at = {self.decay_at} are not shares of the training.",
                "Give numbers between 0 and 1, such as decay_at=0.4,0.7.",
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        passed = sum(step >= round(share * self.steps) for share in self.decay_at)
        return self.learning_rate * 0.1**passed


class ClassifierAttackResult(NamedTuple):
    """The compromised classifier and how it came about.

    Attributes:
        classifier: in evaluation mode, on the device of the clean one.
        history: one entry per evaluation on the held-out images: ``step`` and the figures of
            :func:`genwarden.attacks.compression.evaluation.figures`.
        wakes_under: the compressions that the attack was made for.
        chosen: the entry of ``history`` whose weights are released.
        accepted: whether that entry meets the acceptance rule; None where none is chosen by it.
        notes: what else the attack records.
        deployed: other compressions that a deployer may use, to be measured, too.
    """

    classifier: ImageClassifier
    history: list[dict[str, Any]]
    wakes_under: tuple[Compressor, ...]
    chosen: dict[str, Any]
    accepted: bool | None
    notes: Mapping[str, Any]
    deployed: tuple[Compressor, ...] = ()


class ClassifierAttack(Protocol):
    """One attack on a classifier."""

    def __call__(
        self,
        classifier: ImageClassifier,
        backdoor: ClassifierBackdoor,
        settings: ClassifierAttackSettings,
        data: AttackerData,
        run: AttackRun,
    ) -> ClassifierAttackResult:
        """Hide ``backdoor`` in a copy of ``classifier``, which stays as it is."""
        ...
