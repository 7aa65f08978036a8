"""What genwarden asks of an image classifier: its images, its classes, logits.

Conventions: images lie in ``[-1, 1]``, NCHW; a network that wants other statistics scales them in
its own forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden.models.protocol import SampleSpec

#: Bounds of the settings that a file may state (a network is built only if its weights fit, too).
_MOST_CLASSES: Final = 10_000
_MOST_CHANNELS: Final = 16
_MOST_PIXELS: Final = 1024
_WIDEST: Final = 8.0


class ImageClassifier(nn.Module):
    """Base of the reference networks: subclasses define ``features`` and ``head``.

    Args:
        image_shape: channels, height and width of an image.
        classes: number of classes.
        width: factor on the feature maps of every layer; 1 is the published network.
        least_pixels: smallest height and width that the network takes.

    Attributes:
        sample: the images, in [-1, 1].
        classes: number of classes.
        width: factor on the feature maps.
        head: the last layer, from pooled features to logits.
    """

    head: nn.Linear

    def __init__(
        self, image_shape: Sequence[int], classes: int, width: float, least_pixels: int
    ) -> None:
        super().__init__()
        channels, height, across = (int(n) for n in image_shape)
        if not 1 <= channels <= _MOST_CHANNELS:
            raise ValueError(f"images have 1 to {_MOST_CHANNELS} channels")
        if not least_pixels <= min(height, across) <= max(height, across) <= _MOST_PIXELS:
            raise ValueError(f"images have {least_pixels} to {_MOST_PIXELS} pixels per side")
        if not 2 <= classes <= _MOST_CLASSES:
            raise ValueError(f"there are 2 to {_MOST_CLASSES} classes")
        if not 0 < width <= _WIDEST:
            raise ValueError(f"the width is above 0 and at most {_WIDEST:g}")
        self.sample = SampleSpec((channels, height, across))
        self.classes = int(classes)
        self.width = float(width)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer reads: ``(batch, C, H, W)`` in [-1, 1] to ``(batch, features)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, C, H, W)`` in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as written to ``genwarden.json``."""
        return {
            "image_shape": list(self.sample.shape),
            "classes": self.classes,
            "width": self.width,
        }

    def scaled(self, channels: int) -> int:
        """Feature maps at this width: a multiple of 4, at least 4 (unchanged at width 1)."""
        return channels if self.width == 1 else max(4, 4 * round(channels * self.width / 4))


def initialise_classifier(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights from an explicit stream.

    Kernels N(0, 2 / fan out) (He et al., for ReLU), dense layers N(0, 1 / inputs), batch norm 1
    and 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.in_features), generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
