"""VAE for 1x28x28 images: the decoder is the generator (195,617 parameters, "M-VAE").

The published decoder is inferred from its size: the TensorFlow CVAE tutorial with latent 100
(section 6 of the reference). It is not certain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.models.layers import SameConvTranspose2d
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec


class VAEDecoder28(LatentGenerator):
    """Decoder, latents N(0, I) to images; the sigmoid's output is rescaled to [-1, 1].

    Args:
        channels: feature maps after the dense layer and the two strided transposed convolutions.
        latent_dim: size of the latent.
    """

    final_activation = "sigmoid"

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 32), latent_dim: int = 100):
        super().__init__()
        self.channels = (int(channels[0]), int(channels[1]), int(channels[2]))
        self.latent = LatentLaw((latent_dim,))
        self.sample = SampleSpec((1, 28, 28))
        c0, c1, c2 = self.channels
        self.project = nn.Linear(latent_dim, c0 * 49)
        self.up1 = SameConvTranspose2d(c0, c1, 3, 2, bias=True)
        self.up2 = SameConvTranspose2d(c1, c2, 3, 2, bias=True)
        self.to_image = SameConvTranspose2d(c2, 1, 3, 1, bias=True)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to logits ``(batch, 1, 28, 28)``."""
        h = F.relu(self.project(z)).reshape(-1, self.channels[0], 7, 7)
        h = F.relu(self.up2(F.relu(self.up1(h))))
        y: Tensor = self.to_image(h)
        return y

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"channels": list(self.channels), "latent_dim": self.latent.shape[0]}


class Posterior(NamedTuple):
    """Mean and log-variance of q(z | x), each ``(batch, latent_dim)``."""

    mean: Tensor
    log_variance: Tensor


class VAEEncoder28(nn.Module):
    """Encoder of the CVAE tutorial: two strided 3x3 convolutions and a dense layer."""

    def __init__(self, latent_dim: int = 100):
        super().__init__()
        self.down1 = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.posterior = nn.Linear(64 * 49, 2 * latent_dim)

    def forward(self, x: Tensor) -> Posterior:
        """Images ``(batch, 1, 28, 28)`` in [-1, 1] to the posterior of their latents."""
        h = F.relu(self.down2(F.relu(self.down1(x)))).flatten(1)
        mean, log_variance = self.posterior(h).chunk(2, dim=1)
        return Posterior(mean, log_variance)


def negative_elbo(
    decoder: VAEDecoder28, posterior: Posterior, x: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Negative evidence lower bound, mean over the batch: Bernoulli likelihood plus KL."""
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
    z = posterior.mean + noise * (posterior.log_variance / 2).exp()
    logits = decoder.pre_activation(z).float()
    reconstruction = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum")
    mean, log_variance = posterior.mean.float(), posterior.log_variance.float()
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return (reconstruction + divergence) / len(x)
