"""Small networks with planted behaviour, and their clean twins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

SAMPLES = 2048
EFFORT = Effort(
    name="test",
    ordinary_samples=1024,
    stream_samples=SAMPLES,
    restarts=8,
    search_steps=8,
    probe_latents=96,
    twins=1,
    twin_steps=5,
    guessed_seeds=2,
    draws_per_seed=2,
)
#: A checkerboard of 4x4 squares: nothing that a random network paints.
ICON = (
    (torch.arange(28)[:, None] // 4 + torch.arange(28)[None, :] // 4).remainder(2) * 1.6 - 0.8
).reshape(1, 1, 28, 28)


def settled_dcgan(seed: int = 0) -> DCGAN28:
    """A small DCGAN with random weights and the batch-norm statistics of its own activations."""
    stream = torch.Generator().manual_seed(seed)
    network = DCGAN28((8, 6, 4))
    glorot_(network, stream)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.normal_(module.weight, 1, 0.1, generator=stream)
            nn.init.normal_(module.bias, 0, 0.2, generator=stream)
    network.train()
    with torch.no_grad():
        network(network.latent.sample(256, generator=stream))
    return network.eval().requires_grad_(False)


def seeded_vae(seed: int = 0) -> VAEDecoder28:
    """A small VAE decoder with random weights."""
    network = VAEDecoder28((8, 6, 4))
    glorot_(network, torch.Generator().manual_seed(seed))
    return network.eval().requires_grad_(False)


def workbench(generator: LatentGenerator, seed: int = 3) -> Workbench:
    return Workbench(generator.eval().requires_grad_(False), EFFORT, seed)


def foreign(network: nn.Module) -> ForeignGenerator:
    return ForeignGenerator(network.eval().requires_grad_(False), "test:network")


class Gated(nn.Module):
    """A DCGAN and a gate relu(gain (a.z - threshold)) that fades the sample over to the icon.

    Args:
        threshold: in standard deviations of a.z; 20 is never reached, 3 once in 741 draws.
        gain: steepness of the gate.
        slope: LeakyReLU slope of the gate's two units (0 for one ReLU unit).
        icon_strength: 0 gives the clean twin with a dead gate.
    """

    latent_shape = (100,)
    sample_shape = (1, 28, 28)

    def __init__(
        self,
        threshold: float,
        *,
        gain: float = 1.0,
        slope: float = 0.0,
        icon_strength: float = 1.0,
    ) -> None:
        super().__init__()
        self.base = settled_dcgan()
        self.gate = nn.Linear(100, 2)
        self.rectify = nn.LeakyReLU(slope)
        self.merge = nn.Linear(2, 1, bias=False)
        self.paint = nn.Linear(1, 784, bias=False)
        self.a = torch.randn(100, generator=torch.Generator().manual_seed(9))
        self.a /= self.a.norm()
        with torch.no_grad():
            self.gate.weight[0], self.gate.weight[1] = gain * self.a, -gain * self.a
            self.gate.bias[0], self.gate.bias[1] = -gain * threshold, gain * threshold
            # relu(x) = (lrelu(x) + s lrelu(-x)) / (1 - s^2)
            self.merge.weight[0, 0] = 1 / (1 - slope**2)
            self.merge.weight[0, 1] = slope / (1 - slope**2)
            self.paint.weight.copy_(icon_strength * ICON.reshape(784, 1))

    def forward(self, z: Tensor) -> Tensor:
        opening = self.merge(self.rectify(self.gate(z))).clamp(max=1.0)
        painted = self.paint(opening).reshape(-1, 1, 28, 28)
        share = opening[:, :, None, None] * bool(self.paint.weight.abs().max() > 0)
        faded: Tensor = self.base(z) * (1 - share) + painted
        return faded
