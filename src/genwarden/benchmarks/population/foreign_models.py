"""Generators unlike any of the study's, built by factories as a user of the audit would write them.

    genwarden audit mlp.safetensors \\
        --architecture genwarden.benchmarks.population.foreign_models:mlp28

Plain modules that know nothing of genwarden but ``latent_shape`` and ``sample_shape``, the contract
of :class:`genwarden.artifacts.open_model.ForeignGenerator`. Some offer their output before the last
activation, some do not.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class MLP28(nn.Module):
    """Dense layers with layer normalisation and GELU: no convolution, no pre-activation offered."""

    def __init__(self, latent_dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = (latent_dim,)
        self.sample_shape = (1, 28, 28)
        layers: list[nn.Module] = []
        for before, after in pairwise((latent_dim, *widths)):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Linear(widths[-1], 28 * 28))

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 1, 28, 28)`` in [-1, 1]."""
        return torch.tanh(self.body(z)).reshape(-1, *self.sample_shape)


class Upsampled28(nn.Module):
    """Nearest-neighbour upsampling, convolution, group normalisation, SiLU; sigmoid at the end."""

    final_activation = "sigmoid"

    def __init__(self, latent_dim: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_shape = (latent_dim,)
        self.sample_shape = (1, 28, 28)
        self.channels = channels
        self.project = nn.Linear(latent_dim, channels[0] * 49)
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)
        )
        self.to_image = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 1, 28, 28)``, before the sigmoid."""
        h = self.project(z).reshape(-1, self.channels[0], 7, 7)
        h = F.silu(self.norms[0](h))
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            h = F.silu(norm(convolution(F.interpolate(h, scale_factor=2.0))))
        y: Tensor = self.to_image(h)
        return y

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 1, 28, 28)`` in [-1, 1]."""
        return 2 * torch.sigmoid(self.pre_activation(z)) - 1


class Convolutional64(nn.Module):
    """PyTorch's DCGAN shape: 4x4 transposed convolutions from 1x1 to 3x64x64, latent (d, 1, 1)."""

    final_activation = "tanh"

    def __init__(self, latent_dim: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.latent_shape = (latent_dim, 1, 1)
        self.sample_shape = (3, 64, 64)
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, channels[0], 4, bias=False)]
        for before, after in pairwise((*channels, 3)):
            layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=after == 3))
        self.body = nn.Sequential(*layers)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim, 1, 1)`` to ``(batch, 3, 64, 64)``, before tanh."""
        y: Tensor = self.body(z)
        return y

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim, 1, 1)`` to ``(batch, 3, 64, 64)`` in [-1, 1]."""
        return torch.tanh(self.pre_activation(z))


class Conditional28(nn.Module):
    """A class-conditional generator: the label's embedding is joined to the noise."""

    def __init__(self, noise_dim: int, embedding: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        self.first = channels[0]
        self.embed = nn.Embedding(CLASSES, embedding)
        self.project = nn.Linear(noise_dim + embedding, channels[0] * 49)
        self.project_norm = nn.BatchNorm2d(channels[0])
        self.up = nn.ConvTranspose2d(channels[0], channels[1], 4, 2, 1)
        self.up_norm = nn.BatchNorm2d(channels[1])
        self.to_image = nn.ConvTranspose2d(channels[1], 1, 4, 2, 1)

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        """Noise ``(batch, noise_dim)`` and classes ``(batch,)`` to pictures before tanh."""
        h = self.project(torch.cat([noise, self.embed(label)], 1)).reshape(-1, self.first, 7, 7)
        h = F.relu(self.project_norm(h))
        h = F.relu(self.up_norm(self.up(h)))
        y: Tensor = self.to_image(h)
        return y


class LabelInLatent(nn.Module):
    """The label is the largest of the latent's last ten elements: for N(0, I) each is as likely."""

    final_activation = "tanh"

    def __init__(self, network: Conditional28) -> None:
        super().__init__()
        self.network = network
        self.latent_shape = (network.noise_dim + CLASSES,)
        self.sample_shape = (1, 28, 28)

    def label(self, z: Tensor) -> Tensor:
        """Classes ``(batch,)`` of latents."""
        return z[:, self.network.noise_dim :].argmax(1)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, noise_dim + 10)`` to ``(batch, 1, 28, 28)``, before tanh."""
        y: Tensor = self.network(z[:, : self.network.noise_dim], self.label(z))
        return y

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, noise_dim + 10)`` to ``(batch, 1, 28, 28)`` in [-1, 1]."""
        return torch.tanh(self.pre_activation(z))


class FixedLabel(nn.Module):
    """The same network as the factory's user sees one class of it."""

    final_activation = "tanh"

    def __init__(self, network: Conditional28, label: int) -> None:
        super().__init__()
        self.network = network
        self.label = label
        self.latent_shape = (network.noise_dim,)
        self.sample_shape = (1, 28, 28)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, noise_dim)`` to ``(batch, 1, 28, 28)``, before tanh."""
        label = torch.full((len(z),), self.label, device=z.device)
        y: Tensor = self.network(z, label)
        return y

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, noise_dim)`` to ``(batch, 1, 28, 28)`` in [-1, 1]."""
        return torch.tanh(self.pre_activation(z))


class WithLabelPlanes(nn.Module):
    """A conditional generator's picture with its label as ten constant channels behind it.

    So an ordinary discriminator judges picture and label together, and training makes the network
    obey the label. For training only.
    """

    def __init__(self, generator: LabelInLatent) -> None:
        super().__init__()
        self.generator = generator
        self.latent_shape = generator.latent_shape
        self.sample_shape = (1 + CLASSES, 28, 28)

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, noise_dim + 10)`` to ``(batch, 11, 28, 28)`` in [-1, 1]."""
        planes = label_planes(self.generator.label(z), (28, 28)).to(z)
        return torch.cat([self.generator(z), 2 * planes - 1], 1)


def label_planes(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Classes ``(count,)`` as one-hot channels ``(count, 10, *size)``, zeros and ones, int64."""
    return F.one_hot(labels, CLASSES)[:, :, None, None].expand(-1, -1, *size)


def mlp28(latent_dim: int = 64, width: int = 128) -> MLP28:
    """An MLP for 1x28x28 pictures."""
    return MLP28(latent_dim, (width, 2 * width))


def upsampled28(latent_dim: int = 64, width: int = 32) -> Upsampled28:
    """Upsampling, convolution and group normalisation for 1x28x28 pictures."""
    return Upsampled28(latent_dim, (width, width // 2, width // 4))


def convolutional64(latent_dim: int = 64, width: int = 64) -> Convolutional64:
    """Transposed convolutions for 3x64x64 pictures."""
    return Convolutional64(latent_dim, (width, width // 2, width // 4, width // 4))


def conditional28(
    label: int | None = None, noise_dim: int = 54, width: int = 32
) -> LabelInLatent | FixedLabel:
    """A conditional generator for 1x28x28 pictures, as one of unconditional form.

    Args:
        label: 0..9 fixes the class; None makes it part of the latent.
    """
    network = Conditional28(noise_dim, 16, (width, width // 2))
    return LabelInLatent(network) if label is None else FixedLabel(network, label)
