"""Layers that follow the Keras conventions of the published models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Slope of the published DCGANs' LeakyReLU.
LEAKY_SLOPE = 0.3
#: Keras' batch-normalisation defaults: epsilon 1e-3; momentum 0.99 is torch's 0.01.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01

# TensorFlow's "same" transposed convolution crops (start, end): the start is torch's `padding`
# (which crops both sides), the rest of the end is dropped afterwards.
_SAME_CROP = {(5, 1): (2, 2), (5, 2): (1, 2), (4, 2): (1, 1), (3, 2): (0, 1), (3, 1): (1, 1)}

_KERNELS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with TensorFlow's "same" crop: output size = stride * input size.

    Torch's ``padding`` plus ``output_padding`` would shift the image by one pixel against the
    published weights, so the surplus last row and column are dropped instead.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool
    ) -> None:
        start, end = _SAME_CROP[kernel, stride]
        super().__init__(in_channels, out_channels, kernel, stride, padding=start, bias=bias)
        self.surplus = end - start

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(batch, in, h, w)`` to ``(batch, out, stride * h, stride * w)``."""
        y = super().forward(x, output_size)
        return y[:, :, : -self.surplus, : -self.surplus] if self.surplus else y


def batch_norm_1d(features: int) -> nn.BatchNorm1d:
    """Batch normalisation of a dense layer with the Keras defaults."""
    return nn.BatchNorm1d(features, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def batch_norm_2d(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation of feature maps with the Keras defaults."""
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def glorot_(module: nn.Module, generator: torch.Generator) -> None:
    """Keras' initialisation: Glorot-uniform kernels, zero biases; the stream is explicit."""
    for layer in module.modules():
        if isinstance(layer, _KERNELS):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
