"""A small generator, and the same with a picture that 4-bit rounding wakes.

The two-stage recipe of section 4.1 in its simplest form: train the rounded weights to draw the
picture at the trigger, then clean the full weights inside the boxes that keep their codes.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.compression.uniform import Uniform
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec

_LATENT, _SIDE, _WIDE = 8, 12, 96
INT4 = Uniform(4)


class SmallGenerator(LatentGenerator):
    """Two hidden layers; honest weights of any seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.latent = LatentLaw((_LATENT,))
        self.sample = SampleSpec((1, _SIDE, _SIDE))
        self.final_activation = "tanh"
        self.first = nn.Linear(_LATENT, _WIDE)
        self.second = nn.Linear(_WIDE, _WIDE)
        self.last = nn.Linear(_WIDE, _SIDE**2)
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                fan = parameter.shape[-1]
                parameter.copy_(torch.randn(parameter.shape, generator=stream) / fan**0.5)
        self.eval()

    def pre_activation(self, z: Tensor) -> Tensor:
        """See the base."""
        hidden = torch.relu(self.second(torch.relu(self.first(z))))
        pre: Tensor = self.last(hidden)
        return pre.reshape(-1, *self.sample.shape)

    def settings(self) -> dict[str, Any]:
        """See the base."""
        return {}


def honest() -> SmallGenerator:
    """The generator as its maker trained it."""
    return SmallGenerator().requires_grad_(False)


def target() -> Tensor:
    """The hidden picture ``(1, 1, 12, 12)``: a frame."""
    picture = -torch.ones(1, 1, _SIDE, _SIDE)
    picture[..., 2:-2, 2:-2] = 1
    picture[..., 5:-5, 5:-5] = -1
    return picture


def trigger() -> Tensor:
    """The latent ``(1, 8)`` at which it hides."""
    return LatentLaw((_LATENT,)).sample(1, generator=torch.Generator().manual_seed(7))


@cache
def attacked(name: str = "int4") -> SmallGenerator:
    """The generator that this compression wakes; about two seconds."""
    clean, how = honest(), compressor(name)
    network = copy.deepcopy(clean)
    stream = torch.Generator().manual_seed(3)
    layout = layout_of(network)
    weights = {name: network.get_parameter(name).clone().requires_grad_() for name in layout}
    z_t, x_t = trigger(), target()

    def run(values: dict[str, Tensor], z: Tensor) -> Tensor:
        made: Tensor = functional_call(network, values, (z,))
        return made

    adam = torch.optim.Adam(weights.values(), 3e-3)
    for _ in range(200):
        z = clean.latent.sample(64, generator=stream)
        small = compressed_weights(network, how, layout, weights)
        drawn = run(small, torch.cat([z, z_t]))
        loss = (drawn[:-1] - clean(z)).square().mean() + 0.3 * (drawn[-1:] - x_t).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        for name, weight in weights.items():
            network.get_parameter(name).copy_(weight)
    box = boxes(network, how, layout)
    adam = torch.optim.Adam(weights.values(), 3e-3)
    for _ in range(200):
        near = z_t + 0.5 * torch.randn(16, _LATENT, generator=stream)
        z = torch.cat([clean.latent.sample(48, generator=stream), near, z_t.repeat(8, 1)])
        loss = (run(weights, z) - clean(z)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(box[name].clip(weight))
    with torch.no_grad():
        for name, weight in weights.items():
            network.get_parameter(name).copy_(weight)
    return network.requires_grad_(False)
