"""MobileNetV2 in its CIFAR form (Sandler et al.): 2,296,922 parameters.

Strides of the stem and of the second stage are 1. A block whose channels change at stride 1 has a
1x1 shortcut, as in the CIFAR networks that the compression papers attack; the ImageNet network has
none there (2.24 M parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from genwarden.models.classifiers.blocks import conv_norm, pooled
from genwarden.models.classifiers.protocol import ImageClassifier

#: Expansion, feature maps, number of blocks, stride of the first one (Table 2 of the paper).
_STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM: Final = 32
_LAST: Final = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = conv_norm(in_channels, hidden, 1, activation=nn.ReLU6())
        self.depthwise = conv_norm(
            hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6()
        )
        self.project = conv_norm(hidden, out_channels, 1)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            same = in_channels == out_channels
            self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, H, W)`` to ``(batch, out, H / stride, W / stride)``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2(ImageClassifier):
    """A stem, seventeen inverted residuals, a 1x1 convolution, global mean, one dense layer."""

    def __init__(
        self, image_shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__(image_shape, classes, width, least_pixels=16)
        channels = self.scaled(_STEM)
        self.stem = conv_norm(self.sample.shape[0], channels, 3, activation=nn.ReLU6())
        blocks = []
        for expansion, maps, count, stride in _STAGES:
            made = self.scaled(maps)
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, made, expansion, step))
                channels = made
        self.blocks = nn.Sequential(*blocks)
        last = self.scaled(_LAST)
        self.last = conv_norm(channels, last, 1, activation=nn.ReLU6())
        self.head = nn.Linear(last, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(batch, 1280)`` at width 1."""
        return pooled(self.last(self.blocks(self.stem(x))))
