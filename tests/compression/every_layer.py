"""Networks and bare weights of every kind of layer, a few hundred numbers each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genwarden.compression.layers import WeightLayer
from genwarden.engine.seeds import random_stream

#: One of each kind; output channels are the axes 0, 0 and 1.
LAYOUT = {
    "dense.weight": WeightLayer("dense.weight", "linear", 0),
    "conv.weight": WeightLayer("conv.weight", "convolution", 0),
    "up.weight": WeightLayer("up.weight", "transposed", 1),
}
_SHAPES = {"dense.weight": (6, 70), "conv.weight": (5, 4, 3, 3), "up.weight": (4, 5, 3, 3)}


def random_weights(seed: int) -> dict[str, Tensor]:
    """Normal weights of three layers with different spreads."""
    stream = random_stream(seed, "weights")
    return {
        name: torch.randn(shape, generator=stream) * spread
        for (name, shape), spread in zip(_SHAPES.items(), (1.0, 0.1, 3.0), strict=True)
    }


class EveryLayer(nn.Module):
    """Dense, transposed and plain convolution, each with a batch norm behind it, then one more."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 4 * 9, bias=bias)
        self.dense_norm = nn.BatchNorm1d(4 * 9)
        self.up = nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1, bias=bias)
        self.up_norm = nn.BatchNorm2d(5)
        self.conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias)
        self.conv_norm = nn.BatchNorm2d(3, affine=False)
        self.last = nn.Conv2d(3, 1, 3)
        _enliven(self)

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, 6)`` to ``(batch, 1, 4, 4)``."""
        h = torch.relu(self.dense_norm(self.dense(z))).reshape(-1, 4, 3, 3)
        h = torch.relu(self.up_norm(self.up(h)))
        y: Tensor = self.last(torch.relu(self.conv_norm(self.conv(h))))
        return y


def _enliven(network: nn.Module) -> None:
    """Statistics and scales of a trained network: none of them 0 or 1, some gains negative."""
    stream = random_stream(0, "every-layer")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(generator=stream)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.1)
    network.eval().requires_grad_(False)


def latents(count: int = 8) -> Tensor:
    """Inputs of :class:`EveryLayer`."""
    return torch.randn(count, 6, generator=random_stream(1, "every-layer"))


def run_on(z: Tensor) -> Callable[[nn.Module], Any]:
    """A forward pass, as folding and layouts ask for it."""
    return lambda network: network(z)
