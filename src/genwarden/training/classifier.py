"""Training of a classifier as in "Stealthy Backdoors as Compression Artifacts" (section 1.2).

Stochastic gradient descent with momentum, cross entropy, the learning rate times 0.1 after 40 % and
80 % of the steps, images shifted inside a black border ("random crop") and, on demand, mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.engine.checkpoint import Trainable
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.metrics.attack_success import accuracy
from genwarden.models.classifiers.protocol import ImageClassifier, initialise_classifier
from genwarden.training.frame import Frame
from genwarden.training.settings import TrainingSettings, batch_indices

#: Width of the border of a random crop at 32 px.
_BORDER_PIXELS: Final = 4
_REFERENCE_SIDE: Final = 32
_BLACK: Final = -1.0


@dataclass(frozen=True)
class ClassifierSettings(TrainingSettings):
    """How a classifier is trained; ``learning_rate`` is that of the first steps.

    Attributes:
        momentum: of the gradient descent.
        weight_decay: on all parameters, as published.
        decay_at: shares of the steps after which the learning rate is multiplied with ``decay``.
        decay: that factor.
        crop: shift the images by up to 4 px at 32 px (in proportion elsewhere).
        flip: mirror half of the images; wrong for digits, letters and many signs.
    """

    momentum: float = 0.2
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (0.4, 0.8)
    decay: float = 0.1
    crop: bool = True
    flip: bool = False

    #: The published learning rate.
    PUBLISHED_RATE: ClassVar[float] = 0.1

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        passed = sum(step >= round(share * self.steps) for share in self.decay_at)
        return self.learning_rate * self.decay**passed


class ClassifierLearner:
    """A classifier on the cross entropy of labelled images.

    Args:
        classifier: fresh network; its weights are initialised from the run seed.
        labels: int64 ``(count,)``, of the images that the frame draws its batches from.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        labels: Tensor,
        settings: ClassifierSettings,
        device: torch.device,
    ) -> None:
        initialise_classifier(classifier, random_stream(settings.seed, "classifier-weights"))
        self.classifier = classifier.to(device).train().requires_grad_(True)
        self.labels = labels
        self.settings = settings
        self.descent = torch.optim.SGD(
            classifier.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    @property
    def parts(self) -> dict[str, Trainable]:
        """The network and its optimiser."""
        return {"classifier": self.classifier, "sgd": self.descent}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One step on the images of step ``step``; returns the cross entropy (nats per image)."""
        settings = self.settings
        chosen = batch_indices(len(self.labels), step, settings)
        labels = self.labels[chosen].to(real.device)
        x = augmented(real, stream, crop=settings.crop, flip=settings.flip)
        bf16 = settings.precision == "bf16"
        with torch.autocast(real.device.type, torch.bfloat16, enabled=bf16):
            logits = self.classifier(x)
        loss = F.cross_entropy(logits.float(), labels)
        for group in self.descent.param_groups:
            group["lr"] = settings.rate(step)
        self.descent.zero_grad(set_to_none=True)
        loss.backward()
        self.descent.step()
        return [loss.item()]

    def describe(self, losses: list[float]) -> str:
        """Cross entropy."""
        return f"cross entropy {losses[0]:.3f}"


def augmented(images: Tensor, stream: torch.Generator, *, crop: bool, flip: bool) -> Tensor:
    """Images ``(batch, C, H, W)`` in [-1, 1], each shifted inside a black border and mirrored.

    Args:
        stream: of the shifts and mirrorings, on the CPU.
        crop: shift every image by its own number of rows and columns.
        flip: mirror each image with probability 1/2.
    """
    count, _, height, width = images.shape
    device = images.device
    if crop:
        down, right = (round(_BORDER_PIXELS * side / _REFERENCE_SIDE) for side in (height, width))
        tops = torch.randint(0, 2 * down + 1, (count, 1), generator=stream).to(device)
        lefts = torch.randint(0, 2 * right + 1, (count, 1), generator=stream).to(device)
        framed = F.pad(images, (right, right, down, down), value=_BLACK)
        rows = tops + torch.arange(height, device=device)
        columns = lefts + torch.arange(width, device=device)
        each = torch.arange(count, device=device)[:, None, None]
        # Indexing two separated axes puts the channels last; they come back to their place.
        images = framed[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, generator=stream).to(device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images


def train_on_labels(
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    settings: ClassifierSettings,
    *,
    checkpoint: Path | None = None,
    run_id: str = "",
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Train a fresh classifier in place; resumes from ``checkpoint`` if one is there.

    Args:
        images: uint8 ``(count, C, H, W)``.
        labels: int64 ``(count,)``.

    Returns:
        The training record: cross entropy (nats per image, mean over the last 100 steps). The
        classifier is left in evaluation mode, its weights frozen.
    """
    where = device or torch.device("cpu")
    learner = ClassifierLearner(classifier, labels, settings, where)
    frame = Frame(learner, settings, checkpoint, run_id)
    if progress is not None:
        frame.progress = progress
    frame.run(images, where)
    classifier.eval().requires_grad_(False)
    (mean,) = frame.mean_losses()
    return {"steps": settings.steps, "cross_entropy": mean}


def measured(classifier: ImageClassifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy on images that were not trained on, for the record."""
    return {"accuracy": accuracy(classifier, images, labels), "test_images": len(images)}
