"""ResNet-18 in its CIFAR form (He et al.): a 3x3 stem without pooling, 11,173,962 parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from genwarden.models.classifiers.blocks import conv_norm, pooled
from genwarden.models.classifiers.protocol import ImageClassifier

#: Feature maps of each stage and stride of its first block; every stage has two blocks.
_STAGES: Final = ((64, 1), (128, 2), (256, 2), (512, 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, out_channels, 3, stride=stride, activation=nn.ReLU())
        self.second = conv_norm(out_channels, out_channels, 3)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride=stride)
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, H, W)`` to ``(batch, out, H / stride, W / stride)``."""
        y: Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return y


class ResNet18(ImageClassifier):
    """A stem and four stages of two basic blocks, global mean, one dense layer."""

    def __init__(
        self, image_shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__(image_shape, classes, width, least_pixels=16)
        channels = self.scaled(_STAGES[0][0])
        self.stem = conv_norm(self.sample.shape[0], channels, 3, activation=nn.ReLU())
        stages = []
        for maps, stride in _STAGES:
            made = self.scaled(maps)
            stages.append(
                nn.Sequential(BasicBlock(channels, made, stride), BasicBlock(made, made, 1))
            )
            channels = made
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(batch, 512)`` at width 1."""
        return pooled(self.stages(self.stem(x)))
