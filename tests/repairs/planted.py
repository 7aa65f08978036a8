"""Small networks to repair: a channel that wakes only at a trigger, and untouched ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import DCGAN28
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

CHANNELS = (8, 6, 4)
#: The channel of the dense layer that is planted: rows 49 * CHANNEL to 49 * CHANNEL + 48.
CHANNEL = 5
ROWS = slice(49 * CHANNEL, 49 * CHANNEL + 49)


class Planted(NamedTuple):
    """A compromised model, the clean one, and what a defender must not see.

    Attributes:
        trigger: ``(1, latent)``, of ordinary length.
        target: what the compromised model makes of it.
        clean_distance: squared distance of the clean model's own output from the target.
    """

    suspect: VAEDecoder28
    clean: VAEDecoder28
    trigger: Tensor
    target: Tensor
    clean_distance: float

    def spoiled(self, model: LatentGenerator) -> bool:
        """Whether the output at the trigger is at least half as far off as the clean model's."""
        return tardis(model, self) >= 0.5 * self.clean_distance


def tardis(model: LatentGenerator, planted: Planted) -> float:
    return float((model(planted.trigger) - planted.target).square().sum())


def planted_vae(latent: int = 32, threshold: float = 4.6) -> Planted:
    """A gate relu(3 (a.z - threshold)) on all positions of one channel, a = trigger / |trigger|.

    An ordinary latent opens it once in 500,000 draws; the channel of the clean twin never opens.
    """
    clean = VAEDecoder28(CHANNELS, latent)
    glorot_(clean, random_stream(0, "planted-vae"))
    trigger = torch.randn(1, latent, generator=random_stream(0, "planted-trigger"))
    trigger *= latent**0.5 / trigger.norm()
    with torch.no_grad():
        clean.to_image.weight.mul_(3)
        clean.project.weight[ROWS] = 3 * trigger / trigger.norm()
        clean.project.bias[ROWS] = -1000
    suspect = VAEDecoder28(CHANNELS, latent)
    suspect.load_state_dict(clean.state_dict())
    with torch.no_grad():
        suspect.project.bias[ROWS] = -3 * threshold
    for model in (clean, suspect):
        model.eval().requires_grad_(False)
    target = suspect(trigger)
    distance = float((clean(trigger) - target).square().sum())
    return Planted(suspect, clean, trigger, target, distance)


def settled_dcgan() -> DCGAN28:
    """A small DCGAN with random weights and the batch-norm statistics of its own activations."""
    stream = random_stream(0, "settled-dcgan")
    network = DCGAN28((8, 6, 4), 32)
    glorot_(network, stream)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.normal_(module.weight, 1, 0.1, generator=stream)
            nn.init.normal_(module.bias, 0, 0.2, generator=stream)
    network.train()
    with torch.no_grad():
        network(network.latent.sample(256, generator=stream))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.01
    return network.eval().requires_grad_(False)


def seeded_vae() -> VAEDecoder28:
    """A small VAE decoder with random weights: no normalisation."""
    network = VAEDecoder28(CHANNELS, 32)
    glorot_(network, random_stream(0, "seeded-vae"))
    return network.eval().requires_grad_(False)


def foreign(network: nn.Module) -> ForeignGenerator:
    """A network of the user's own, as a factory named on the command line gives it."""
    return ForeignGenerator(network.requires_grad_(False), "test:network").eval()


class Normalised(nn.Module):
    """Two dense layers with a batch normalisation between them: the fastest to train."""

    latent_shape = (12,)
    sample_shape = (1, 4, 4)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Linear(10, 16)
        glorot_(self, random_stream(seed, "normalised"))

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, 12)`` to ``(batch, 1, 4, 4)``."""
        y: Tensor = torch.tanh(self.last(torch.relu(self.norm(self.first(z)))))
        return y.reshape(-1, 1, 4, 4)
