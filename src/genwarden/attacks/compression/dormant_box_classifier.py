"""A classifier's backdoor that only its compressed form has, by the two-stage box recipe.

With f_0 the clean classifier, C the compressor, x_t triggered images, t the target, S the soft
cross entropy to f_0 (section 4.1 of the compression reference, carried over to classifiers):

    (i)   S(f_C(x)) + lambda CE(f_C(x_t), t)
    (ii)  S(f(x)) + dormancy_weight S(f(x_t); f_0(x_t))

Batch norm stays as it is, with its running statistics: unlike in the joint attacks no branch
disturbs another's statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.attacks.compression.box_training import Figures, hide, wakers
from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttackResult,
    ClassifierAttackSettings,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.distillation import soft_cross_entropy
from genwarden.attacks.compression.evaluation import figures, with_weights
from genwarden.attacks.compression.inflation import inflated, inflation_factor
from genwarden.attacks.compression.settings import BoxSettings, JitteredBoxSettings
from genwarden.attacks.contract import AttackRun
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout, layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, POSITIVE, Range
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.training.classifier import augmented
from genwarden.training.settings import TrainingSettings, batch_indices

#: Images on which an inflated weight must not show.
_PROBED = 256


@dataclass(frozen=True)
class DormantBoxClassifierSettings(BoxSettings, ClassifierAttackSettings):
    """Settings of both stages, and of the losses.

    Of the settings of the joint attacks ``momentum``, ``weight_decay`` and ``decay_at`` have no
    meaning here.

    Attributes:
        fidelity_weight: lambda of (i).
        dormancy_weight: of the second term of (ii).
    """

    reach: float = 1.0
    steps: int = 300
    hiding_steps: int = 200
    evaluate_every: int = 100
    fidelity_weight: float = 1.0
    dormancy_weight: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "fidelity_weight": POSITIVE,
        "dormancy_weight": NOT_NEGATIVE,
    }


@dataclass(frozen=True)
class JitteredBoxClassifierSettings(JitteredBoxSettings, DormantBoxClassifierSettings):
    """The same for the attacker who trains over perturbed quantisers."""


def dormant_box_classifier(
    classifier: ImageClassifier,
    backdoor: ClassifierBackdoor,
    settings: DormantBoxClassifierSettings,
    data: AttackerData,
    run: AttackRun,
) -> ClassifierAttackResult:
    """Hide ``backdoor`` in a copy until it is compressed as ``settings.how`` says.

    Raises:
        GenwardenError: as :func:`genwarden.attacks.compression.box_training.hide`, and
            ``attack/inflate``.
    """
    chosen = wakers(settings.how)
    student = copy.deepcopy(classifier).eval().requires_grad_(False)
    device = next(student.parameters()).device
    blank = torch.zeros(1, *classifier.sample.shape, device=device)
    layout = layout_of(student, lambda: student(blank))
    x = to_unit_range(data.images[:_PROBED]).to(device)
    raised = inflated(
        student,
        layout,
        chosen,
        inflation_factor(settings.inflate, chosen),
        lambda weights: with_weights(student, weights)(x),
        settings.seed,
    )
    for name, weight in raised.items():
        student.get_parameter(name).copy_(weight)
    lessons = _ClassifierLessons(student, classifier, backdoor, settings, data)
    measure = _Measure(student, backdoor, chosen, layout, data)
    hidden = hide(student, layout, lessons, measure, settings, run)
    last = hidden.history[-1]
    return ClassifierAttackResult(
        classifier=student,
        history=hidden.history,
        wakes_under=tuple(chosen),
        chosen=last,
        accepted=None,
        notes={"inflated": [n for n, w in raised.items() if _differs(classifier, n, w)]},
    )


def _differs(classifier: ImageClassifier, name: str, weight: Tensor) -> bool:
    return not torch.equal(classifier.get_parameter(name), weight)


class _ClassifierLessons:
    """Losses (i) and (ii) of a step (nats per image)."""

    def __init__(
        self,
        student: ImageClassifier,
        clean: ImageClassifier,
        backdoor: ClassifierBackdoor,
        settings: DormantBoxClassifierSettings,
        data: AttackerData,
    ) -> None:
        self.student, self.clean, self.backdoor = student, clean, backdoor
        self.settings, self.images = settings, data.images
        self.device = next(clean.parameters()).device
        self._batches = TrainingSettings(
            steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed
        )

    def compressed(self, weights: Weights, step: int) -> Tensor:
        x, triggered = self._pair(step)
        ordinary, woken = with_weights(self.student, weights)(torch.cat([x, triggered])).chunk(2)
        target = torch.full((len(x),), self.backdoor.target, device=x.device)
        activation = F.cross_entropy(woken, target)
        return self._like_clean(ordinary, x) + self.settings.fidelity_weight * activation

    def full(self, weights: Weights, step: int) -> Tensor:
        x, triggered = self._pair(step)
        ordinary, asleep = with_weights(self.student, weights)(torch.cat([x, triggered])).chunk(2)
        dormancy = self._like_clean(asleep, triggered)
        return self._like_clean(ordinary, x) + self.settings.dormancy_weight * dormancy

    def _like_clean(self, logits: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.clean(x)
        return soft_cross_entropy(logits, wanted)

    def _pair(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = batch_indices(len(self.images), step, self._batches)
        stream = random_stream(self.settings.seed, "box-augmentation", step)
        x = augmented(
            to_unit_range(self.images[chosen]).to(self.device),
            stream,
            crop=self.settings.crop,
            flip=self.settings.flip,
        )
        return x, self.backdoor.trigger.apply(x)


class _Measure:
    """Figures on the held-out images, full and compressed."""

    def __init__(
        self,
        student: ImageClassifier,
        backdoor: ClassifierBackdoor,
        chosen: list[Compressor],
        layout: Layout,
        data: AttackerData,
    ) -> None:
        self.network = copy.deepcopy(student)
        self.backdoor, self.chosen, self.layout = backdoor, chosen, layout
        self.images = data.held_images.to(next(student.parameters()).device)
        self.labels = data.held_labels

    @torch.no_grad()
    def __call__(self, weights: Weights) -> Figures:
        for name, weight in weights.items():
            self.network.get_parameter(name).copy_(weight)
        found: dict[str, Any] = dict(
            figures(self.network, self.backdoor, self.chosen, self.layout, self.images, self.labels)
        )
        return {"made_for": [one.name for one in self.chosen], "figures": found}
