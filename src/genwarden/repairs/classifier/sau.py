"""SAU: unlearn the adversarial examples that the suspect and its repaired copy share.

Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial
Examples" (NeurIPS 2023; compression reference, section 2c). With f0 the frozen suspect and f the
copy, the inner problem looks for a perturbation d, |d|_inf <= radius, that fools both alike:

    min_d  0.01 * mean[-CE(f, y) - CE(f0, y)] / 2  +  mean JS(f(x + d), f0(x + d))

each cross entropy only where that model is not fooled yet, JS only where the example is not shared
yet (both fooled, same class). The outer step trains f on

    CE(f(x), y) + mean over the batch of [f0 is fooled] * -log(1 - p_f(class that f0 sees))

so that f leaves f0's wrong answers. A backdoor is such a shared weakness: its trigger moves both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.repairs.classifier.contract import (
    ClassifierRepairSettings,
    LabelledData,
    RepairedClassifier,
)
from genwarden.repairs.classifier.training import train
from genwarden.repairs.contract import RepairRun

_TINY: Final = 1e-6


@dataclass(frozen=True)
class SauSettings(ClassifierRepairSettings):
    """Inner and outer problem; ``learning_rate`` is Adam's (published: 1e-4, 100 epochs).

    Attributes:
        radius: largest change of a pixel, in the units of the images ([-1, 1]).
        inner_steps: of projected gradient descent.
        inner_rate: its step, in the same units (signs of the gradient).
        adversarial_weight: of the cross entropies in the inner problem.
        shared_weight: of the outer second term.
    """

    learning_rate: float = 1e-4
    radius: float = 0.2
    inner_steps: int = 5
    inner_rate: float = 0.2
    adversarial_weight: float = 0.01
    shared_weight: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "radius": Range(above=0, at_most=2),
        "inner_steps": COUNT,
        "inner_rate": POSITIVE,
        "adversarial_weight": NOT_NEGATIVE,
        "shared_weight": NOT_NEGATIVE,
    }


def unlearn_shared(
    suspect: ImageClassifier, data: LabelledData, settings: SauSettings, run: RepairRun
) -> RepairedClassifier:
    """Train a copy away from what it shares with the suspect.

    Raises:
        GenwardenError: ``repair/diverged``.
    """
    reference = copy.deepcopy(suspect).eval().requires_grad_(False)
    student = copy.deepcopy(suspect)

    def loss_of(x: Tensor, y: Tensor, step: int) -> Tensor:
        student.eval()  # the inner problem leaves the statistics of batch norm alone
        fooling = shared_adversarial(student, reference, x, y, settings, step)
        student.train()
        logits = student(torch.cat([x, fooling]))
        clean = F.cross_entropy(logits[: len(x)], y)
        with torch.no_grad():
            seen = reference(fooling).argmax(1)
        p = F.softmax(logits[len(x) :], 1).gather(1, seen[:, None]).squeeze(1)
        away = -torch.log(1 + _TINY - p) * (seen != y)
        loss: Tensor = clean + settings.shared_weight * away.mean()
        return loss

    history = train(
        student,
        torch.optim.Adam(student.parameters(), settings.learning_rate),
        loss_of,
        data,
        settings,
        run,
        title="shared adversarial unlearning",
    )
    return RepairedClassifier(student, {"radius": settings.radius}, history)


def shared_adversarial(
    student: ImageClassifier,
    reference: ImageClassifier,
    x: Tensor,
    y: Tensor,
    settings: SauSettings,
    step: int,
) -> Tensor:
    """Images ``(batch, C, H, W)`` in [-1, 1] near ``x`` that shall fool both networks alike."""
    stream = random_stream(settings.seed, "sau-start", step)
    # "max" of the published code: every pixel begins at one end of its range.
    signs = torch.randint(0, 2, x.shape, generator=stream).to(x) * 2 - 1
    change = _inside(x, settings.radius * signs, settings.radius)
    for _ in range(settings.inner_steps):
        change.requires_grad_(True)
        mine, theirs = student(x + change), reference(x + change)
        loss = _inner_loss(mine, theirs, y, settings.adversarial_weight)
        (gradient,) = torch.autograd.grad(loss, change)
        moved = change.detach() - settings.inner_rate * gradient.sign()
        change = _inside(x, moved, settings.radius)
    return x + change


def _inner_loss(mine: Tensor, theirs: Tensor, y: Tensor, weight: float) -> Tensor:
    fooled, fooled_too = mine.argmax(1) != y, theirs.argmax(1) != y
    shared = fooled & fooled_too & (mine.argmax(1) == theirs.argmax(1))
    adversarial = -(
        F.cross_entropy(mine, y, reduction="none") * ~fooled
        + F.cross_entropy(theirs, y, reduction="none") * ~fooled_too
    )
    return weight * adversarial.mean() / 2 + (jensen_shannon(mine, theirs) * ~shared).mean()


def jensen_shannon(mine: Tensor, theirs: Tensor) -> Tensor:
    """Divergence of two laws given as logits ``(batch, classes)``, in nats ``(batch,)``."""
    p, q = F.softmax(mine, 1).clamp(min=_TINY), F.softmax(theirs, 1).clamp(min=_TINY)
    middle = ((p + q) / 2).log()
    return 0.5 * ((p * (p.log() - middle)).sum(1) + (q * (q.log() - middle)).sum(1))


def _inside(x: Tensor, change: Tensor, radius: float) -> Tensor:
    """The change within the radius, the image within [-1, 1]."""
    return ((x + change.clamp(-radius, radius)).clamp(-1, 1) - x).detach()
