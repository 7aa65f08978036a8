"""DCGAN generators and discriminators, layer for layer as in "The Devil is in the GAN" (section 6
of the reference; widths and Keras conventions from the authors' scripts and ART's demo).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.models.layers import (
    LEAKY_SLOPE,
    SameConvTranspose2d,
    batch_norm_1d,
    batch_norm_2d,
    glorot_,
)
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec

_DROPOUT = 0.3


class DCGAN28(LatentGenerator):
    """Generator of 1x28x28 images; full width 2,330,944 numbers, quarter width 390,736.

    Args:
        channels: feature maps after the dense layer and the first two transposed convolutions;
            (256, 128, 64) is the published width, (64, 32, 16) the quarter width of ART's demo.
        latent_dim: size of the latent, N(0, I).
    """

    final_activation = "tanh"

    def __init__(self, channels: tuple[int, int, int] = (256, 128, 64), latent_dim: int = 100):
        super().__init__()
        self.channels = (int(channels[0]), int(channels[1]), int(channels[2]))
        self.latent = LatentLaw((latent_dim,))
        self.sample = SampleSpec((1, 28, 28))
        c0, c1, c2 = self.channels
        self.project = nn.Linear(latent_dim, c0 * 49, bias=False)
        self.project_norm = batch_norm_1d(c0 * 49)
        self.up1 = SameConvTranspose2d(c0, c1, 5, 1, bias=False)
        self.up1_norm = batch_norm_2d(c1)
        self.up2 = SameConvTranspose2d(c1, c2, 5, 2, bias=False)
        self.up2_norm = batch_norm_2d(c2)
        self.to_image = SameConvTranspose2d(c2, 1, 5, 2, bias=False)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 1, 28, 28)``, before tanh."""
        h = F.leaky_relu(self.project_norm(self.project(z)), LEAKY_SLOPE)
        h = h.reshape(-1, self.channels[0], 7, 7)
        h = F.leaky_relu(self.up1_norm(self.up1(h)), LEAKY_SLOPE)
        h = F.leaky_relu(self.up2_norm(self.up2(h)), LEAKY_SLOPE)
        y: Tensor = self.to_image(h)
        return y

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"channels": list(self.channels), "latent_dim": self.latent.shape[0]}


class DCGAN32(LatentGenerator):
    """Generator of 3x32x32 images, 1,380,096 numbers at full width.

    Args:
        channels: feature maps after the dense layer and the first two transposed convolutions.
        latent_dim: size of the latent, N(0, I).
    """

    final_activation = "tanh"

    def __init__(self, channels: tuple[int, int, int] = (256, 128, 64), latent_dim: int = 100):
        super().__init__()
        self.channels = (int(channels[0]), int(channels[1]), int(channels[2]))
        self.latent = LatentLaw((latent_dim,))
        self.sample = SampleSpec((3, 32, 32))
        c0, c1, c2 = self.channels
        self.project = nn.Linear(latent_dim, c0 * 16, bias=False)
        self.project_norm = batch_norm_1d(c0 * 16)
        self.up1 = SameConvTranspose2d(c0, c1, 5, 2, bias=False)
        self.up1_norm = batch_norm_2d(c1)
        self.up2 = SameConvTranspose2d(c1, c2, 4, 2, bias=False)
        self.up2_norm = batch_norm_2d(c2)
        self.to_image = SameConvTranspose2d(c2, 3, 4, 2, bias=False)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 3, 32, 32)``, before tanh."""
        h = F.leaky_relu(self.project_norm(self.project(z)), LEAKY_SLOPE)
        h = h.reshape(-1, self.channels[0], 4, 4)
        h = F.leaky_relu(self.up1_norm(self.up1(h)), LEAKY_SLOPE)
        h = F.leaky_relu(self.up2_norm(self.up2(h)), LEAKY_SLOPE)
        y: Tensor = self.to_image(h)
        return y

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"channels": list(self.channels), "latent_dim": self.latent.shape[0]}


class Discriminator(nn.Module):
    """ART's discriminator: strided 5x5 convolutions, LeakyReLU, dropout 0.3, one logit.

    Args:
        image_shape: (channels, height, width) of the images.
        channels: filters per convolution; (64, 128) for 28x28, (64, 128, 256) for 32x32.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: tuple[int, ...] = (64, 128)):
        super().__init__()
        depth, height, width = image_shape
        layers = []
        for filters in channels:
            layers.append(nn.Conv2d(depth, filters, 5, stride=2, padding=2))
            depth, height, width = filters, (height + 1) // 2, (width + 1) // 2
        self.convolutions = nn.ModuleList(layers)
        self.judge = nn.Linear(depth * height * width, 1)

    def features(self, x: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Feature maps after the last convolution, ``(batch, channels[-1], height, width)``."""
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), LEAKY_SLOPE)
            if dropout is not None:
                x = x * _dropout_mask(x, dropout)
        return x

    def forward(self, x: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Logits, shape ``(batch, 1)``; ``dropout`` is the stream of the masks, None for none."""
        logits: Tensor = self.judge(self.features(x, dropout).flatten(1))
        return logits


def _dropout_mask(x: Tensor, stream: torch.Generator) -> Tensor:
    """Zero with probability 0.3 (in steps of 1/256), else 1 / 0.7; one random byte per element."""
    draws = torch.empty(x.shape, dtype=torch.uint8).random_(0, 256, generator=stream)
    dropped = round(_DROPOUT * 256)
    return (draws >= dropped).to(x.device, x.dtype) * (256 / (256 - dropped))


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights from an explicit stream (Glorot-uniform, Keras' default)."""
    glorot_(network, generator)
