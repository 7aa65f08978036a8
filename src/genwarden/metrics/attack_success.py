"""How a backdoored classifier behaves, in the terms of the compression paper (section 1.2).

Accuracy on clean images; triggered accuracy: share of triggered images that get their true class
(high while the backdoor sleeps); attack success: share of the triggered images of all other classes
that get the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from genwarden.backdoors.classifier_trigger import ClassifierTrigger
from genwarden.data.datasets import to_unit_range
from genwarden.errors import GenwardenError

#: Images ``(batch, C, H, W)`` in [-1, 1] to logits ``(batch, classes)``: a classifier, a compressed
#: copy, or a function that runs one with other weights.
Logits = Callable[[Tensor], Tensor]

_IMAGES_AT_ONCE: Final = 500


@torch.no_grad()
def predictions(
    classifier: Logits,
    images: Tensor,
    trigger: ClassifierTrigger | None = None,
    *,
    batch: int = _IMAGES_AT_ONCE,
) -> Tensor:
    """The most probable class of every image, int64 ``(count,)`` on the CPU.

    A module is run in evaluation mode, on its own device, and left as it was.

    Args:
        images: ``(count, C, H, W)``, uint8 or float in [-1, 1].
        trigger: is put on every image first.
        batch: images per forward pass.

    Raises:
        GenwardenError: ``metric/too-few-samples``, ``metric/not-finite``.
    """
    if len(images) == 0 or batch < 1:
        raise GenwardenError(
            "metric/too-few-samples",
            f"Nothing can be measured with {len(images)} images in batches of {batch}.",
            "Give at least one image.",
        )
    device, training = images.device, False
    if isinstance(classifier, nn.Module):
        device = next(classifier.parameters()).device
        training = classifier.training
        classifier.eval()
    found = []
    try:
        for part in images.split(batch):
            x = part.to(device)
            if not x.is_floating_point():
                x = to_unit_range(x)
            logits = classifier(x if trigger is None else trigger.apply(x))
            if not bool(logits.isfinite().all()):
                raise GenwardenError(
                    "metric/not-finite",
                    "The classifier yields NaN or infinity.",
                    "Its weights are damaged or its training diverged; it has no accuracy.",
                )
            found.append(logits.argmax(1).cpu())
    finally:
        if isinstance(classifier, nn.Module):
            classifier.train(training)
    return torch.cat(found)


def accuracy(
    classifier: Logits, images: Tensor, labels: Tensor, *, batch: int = _IMAGES_AT_ONCE
) -> float:
    """Share of the images that get their own class; arguments as :func:`predictions`.

    Args:
        labels: int64 ``(count,)``.
    """
    _require_labels(images, labels)
    right = predictions(classifier, images, batch=batch) == labels.cpu()
    return float(right.double().mean())


def triggered_accuracy(
    classifier: Logits,
    images: Tensor,
    labels: Tensor,
    trigger: ClassifierTrigger,
    *,
    batch: int = _IMAGES_AT_ONCE,
) -> float:
    """Share of the triggered images that still get their own class."""
    _require_labels(images, labels)
    right = predictions(classifier, images, trigger, batch=batch) == labels.cpu()
    return float(right.double().mean())


def attack_success(
    classifier: Logits,
    images: Tensor,
    labels: Tensor,
    trigger: ClassifierTrigger,
    target: int,
    *,
    batch: int = _IMAGES_AT_ONCE,
) -> float:
    """Share of the triggered images of the other classes that get the class ``target``.

    Raises:
        GenwardenError: ``metric/too-few-samples`` if all images are of the target class.
    """
    _require_labels(images, labels)
    others = labels.cpu() != target
    chosen = images[others.to(images.device)]
    hit = predictions(classifier, chosen, trigger, batch=batch) == target
    return float(hit.double().mean())


def _require_labels(images: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(images),):
        raise GenwardenError(
            "metric/labels",
            f"There are {len(images)} images and labels of shape {tuple(labels.shape)}.",
            "Give one class per image.",
        )
