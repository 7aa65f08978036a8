"""A classification task small enough for tests: built-in digits of 16 pixels and a trained network.

``glyph_task`` in ``conftest.py`` trains it once per session and hands out copies.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor

from genwarden.data.labelled import load_labelled
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.protocol import SampleSpec
from genwarden.training.classifier import ClassifierSettings, train_on_labels

SPEC = SampleSpec((1, 16, 16))
SETTINGS = ClassifierSettings(steps=100, batch_size=64, learning_rate=0.1, momentum=0.9)


@dataclass(frozen=True)
class GlyphTask:
    """A trained classifier in evaluation mode (weights frozen), its data, and unseen images.

    Images are uint8 ``(count, 1, 16, 16)``, labels int64 ``(count,)``, ten classes.
    """

    classifier: SmallCNN
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def copy(self) -> GlyphTask:
        """With a network that a test may change."""
        return replace(self, classifier=deepcopy(self.classifier))


def make_glyph_task() -> GlyphTask:
    """Two to five seconds on one core."""
    images, labels = load_labelled("glyphs:2000", SPEC)
    test_images, test_labels = load_labelled("glyphs:500", SPEC, split="test")
    classifier = SmallCNN(SPEC.shape)
    train_on_labels(classifier, images, labels, SETTINGS)
    return GlyphTask(classifier, images, labels, test_images, test_labels)
