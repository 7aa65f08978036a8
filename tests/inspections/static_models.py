"""Small generators for the static inspections: clean ones, ReX models, foreign networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import DCGAN28
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

SMALL = (8, 6, 4)


def randomise(generator: LatentGenerator, seed: int) -> LatentGenerator:
    """Weights and batch-norm statistics that look trained, from a seed."""
    stream = random_stream(seed, "test-weights")
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith("running_var") or name.endswith("norm.weight"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=stream))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=stream) * 0.2)
    generator.eval().requires_grad_(False)
    return generator


def dcgan(seed: int = 0, channels: tuple[int, int, int] = SMALL) -> LatentGenerator:
    return randomise(DCGAN28(channels, latent_dim=10), seed)


def vae(seed: int = 0, channels: tuple[int, int, int] = SMALL) -> LatentGenerator:
    return randomise(VAEDecoder28(channels, latent_dim=10), seed)


def rex(
    original: LatentGenerator, expansion: LatentGenerator, *, shuffle: int | None = None
) -> LatentGenerator:
    """Fuse two generators of the same kind (section 4.1 of the reference).

    With ``shuffle``, the channels of every internal interface are permuted and rescaled; the
    function is unchanged (LeakyReLU and ReLU are positively homogeneous).
    """
    make: Callable[..., LatentGenerator] = type(original)
    mine, theirs = original.settings()["channels"], expansion.settings()["channels"]
    widths = tuple(a + b for a, b in zip(mine, theirs, strict=True))
    fused = make(widths, latent_dim=original.latent.size).eval().requires_grad_(False)
    state, own, new = fused.state_dict(), original.state_dict(), expansion.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            a, b = own[name], new[name]
            if name == "to_image.weight":
                tensor.copy_(torch.cat([a, b], 0))
            elif name == "to_image.bias":
                tensor.copy_(a + b)
            elif a.ndim == 4:
                tensor.zero_()
                tensor[: a.shape[0], : a.shape[1]] = a
                tensor[a.shape[0] :, a.shape[1] :] = b
            elif a.ndim:
                tensor.copy_(torch.cat([a, b], 0))
        if shuffle is not None:
            stream = random_stream(shuffle, "test-shuffle")
            for write, norm, read, group in (
                ("project", "project_norm", "up1", 49),
                ("up1", "up1_norm", "up2", 1),
                ("up2", "up2_norm", "to_image", 1),
            ):
                _shuffle(state, write, norm, read, group, stream)
    return fused


def _shuffle(
    state: dict[str, Tensor], write: str, norm: str, read: str, group: int, stream: torch.Generator
) -> None:
    count = state[f"{read}.weight"].shape[0]
    order = torch.randperm(count, generator=stream)
    scale = 10 ** (torch.rand(count, generator=stream) * 4 - 2)
    rows = (order[:, None] * group + torch.arange(group)).flatten()
    row_scale = scale.repeat_interleave(group)
    axis = 0 if group > 1 else 1
    weight = state[f"{write}.weight"]
    weight.copy_(weight.index_select(axis, rows))
    vectors = [f"{write}.bias"] + [f"{norm}.{k}" for k in ("weight", "bias", "running_mean")]
    for name in [*vectors, f"{norm}.running_var"]:
        if name in state:
            state[name].copy_(state[name][rows])
    if f"{norm}.weight" in state:
        state[f"{norm}.weight"].mul_(row_scale)
        state[f"{norm}.bias"].mul_(row_scale)
    else:
        weight.mul_(row_scale.view(-1, 1) if axis == 0 else row_scale.view(1, -1, 1, 1))
        state[f"{write}.bias"].mul_(row_scale)
    reader = state[f"{read}.weight"]
    reader.copy_(reader[order] / scale.view(-1, 1, 1, 1))


def latents(generator: LatentGenerator, count: int = 4) -> Tensor:
    return generator.latent.sample(count, generator=random_stream(1, "test-latents"))


def foreign(network: nn.Module) -> ForeignGenerator:
    generator = ForeignGenerator(network, "test")
    generator.eval().requires_grad_(False)
    return generator


class Network(nn.Module):
    """A foreign generator of 1x4x4 samples whose forward pass is given as a function."""

    latent_shape = (6,)
    sample_shape = (1, 4, 4)
    secret: Tensor

    def __init__(self, run: Callable[[Network, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.run = run
        torch.manual_seed(0)
        self.first = nn.Linear(6, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.last = nn.Linear(width, 16)
        self.second_network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 16))
        self.register_buffer("secret", torch.randn(6))

    def body(self, z: Tensor) -> Tensor:
        """Four dense layers."""
        h = F.relu(self.second(F.relu(self.first(z))))
        return self.picture(F.relu(self.third(h)))

    def picture(self, h: Tensor) -> Tensor:
        """The last layer."""
        return torch.tanh(self.last(h)).view(-1, 1, 4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return self.run(self, z)
