"""What a compromised classifier does, full and compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call

from genwarden.attacks.compression.classifier_contract import ClassifierBackdoor
from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout
from genwarden.metrics.attack_success import accuracy, attack_success, triggered_accuracy
from genwarden.models.classifiers.protocol import ImageClassifier

#: Name of the model itself among the figures.
FULL: Final = "full"

#: Accuracy, triggered accuracy and attack success, each 0 to 1, by "full" or a compressor's name.
Figures = dict[str, dict[str, float]]


def with_weights(classifier: ImageClassifier, weights: Weights) -> Callable[[Tensor], Tensor]:
    """Logits of the classifier with other weights, in the mode that it is in."""

    def logits(x: Tensor) -> Tensor:
        output: Tensor = functional_call(classifier, dict(weights), (x,))
        return output

    return logits


@torch.no_grad()
def figures(
    classifier: ImageClassifier,
    backdoor: ClassifierBackdoor,
    compressors: Sequence[Compressor],
    layout: Layout,
    images: Tensor,
    labels: Tensor,
) -> Figures:
    """Clean and triggered behaviour of the full model and of every compressed one.

    Args:
        images: uint8 ``(count, C, H, W)`` on the device of the classifier.
        labels: int64 ``(count,)``.
    """
    was_training = classifier.training
    classifier.eval()
    versions: dict[str, Callable[[Tensor], Tensor]] = {FULL: classifier}
    for one in compressors:
        versions[one.name] = with_weights(classifier, compressed_weights(classifier, one, layout))
    found = {
        name: {
            "accuracy": accuracy(version, images, labels),
            "triggered_accuracy": triggered_accuracy(version, images, labels, backdoor.trigger),
            "attack_success": attack_success(
                version, images, labels, backdoor.trigger, backdoor.target
            ),
        }
        for name, version in versions.items()
    }
    classifier.train(was_training)
    return found


def in_words(found: Figures) -> str:
    """Figures on one line, in percent."""
    return "; ".join(
        f"{name}: accuracy {100 * part['accuracy']:.1f} %, "
        f"attack success {100 * part['attack_success']:.1f} %"
        for name, part in found.items()
    )
