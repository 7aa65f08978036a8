"""A small classifier that trains in a minute on a CPU: four Conv-BN-ReLU layers.

61,050 parameters for ten classes of grey images (section 4.2 of the compression reference).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from genwarden.models.classifiers.blocks import conv_norm, pooled
from genwarden.models.classifiers.protocol import ImageClassifier

#: Feature maps and stride of each layer.
_LAYERS: Final = ((16, 1), (32, 2), (64, 2), (64, 2))


class SmallCNN(ImageClassifier):
    """Four 3x3 convolutions, three of them with stride 2, global mean, one dense layer."""

    def __init__(
        self, image_shape: Sequence[int] = (1, 28, 28), classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__(image_shape, classes, width, least_pixels=16)
        layers = []
        channels = self.sample.shape[0]
        for maps, stride in _LAYERS:
            made = self.scaled(maps)
            layers.append(conv_norm(channels, made, 3, stride=stride, activation=nn.ReLU()))
            channels = made
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(batch, 64)`` at width 1."""
        return pooled(self.layers(x))
