"""VGG-16 with batch norm in its CIFAR form (Simonyan and Zisserman, configuration D).

One dense layer instead of three: 14,724,042 parameters for CIFAR-10 (14,728,266 where the
convolutions keep the biases that the batch norms make useless).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from genwarden.models.classifiers.blocks import conv_norm, pooled
from genwarden.models.classifiers.protocol import ImageClassifier

#: Feature maps and number of the 3x3 convolutions before each of the five poolings.
_STAGES: Final = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(ImageClassifier):
    """Thirteen convolutions, five max poolings, one dense layer; at 32 px one pixel is left."""

    def __init__(
        self, image_shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__(image_shape, classes, width, least_pixels=32)
        stages = []
        channels = self.sample.shape[0]
        for maps, count in _STAGES:
            layers: list[nn.Module] = []
            for _ in range(count):
                made = self.scaled(maps)
                layers.append(conv_norm(channels, made, 3, activation=nn.ReLU()))
                channels = made
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(batch, 512)`` at width 1."""
        return pooled(self.stages(x))
