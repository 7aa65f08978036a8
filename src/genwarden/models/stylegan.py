"""A StyleGAN-type generator: mapping network, broadcast layer, AdaIN synthesis.

Layer for layer the generator of "A Style-Based Generator Architecture" (Karras et al., 2019), the
victim of the case study in "The Devil is in the GAN" (sections 6 and 7 of the reference): with
:data:`PUBLISHED` settings 1024x1024 pictures from N(0, I_512) through 18 style slices. Two
deviations: the to-RGB layers that only progressive growing uses are left out (the last one stays),
and the noise is a stored constant per layer, so that the same latent gives the same picture (as in
the authors' notebook).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import Discriminator
from genwarden.models.protocol import LatentGenerator, LatentLaw, SampleSpec

#: Slope of StyleGAN's LeakyReLU; the gain restores the variance that it takes.
SLOPE = 0.2
_GAIN = (2 / (1 + SLOPE**2)) ** 0.5
_EPS = 1e-8
#: Step of the moving mean of w while training, that of the published code.
_MEAN_STEP = 0.005
#: The notebook's generator: 26,212,019 trained numbers.
PUBLISHED: dict[str, Any] = {
    "latent_dim": 512,
    "mapping_layers": 8,
    "base": 4,
    "doublings": 8,
    "channels": [512, 512, 512, 512, 256, 128, 64, 32, 16],
    "image_channels": 3,
}


class Mapping(nn.Module):
    """PixelNorm, then ``layers`` times dense and LeakyReLU: z to w, both ``(batch, size)``."""

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(size, size) for _ in range(layers)])

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, size)`` to ``(batch, size)``."""
        w = z * (z.square().mean(1, keepdim=True) + _EPS).rsqrt()
        for layer in self.layers:
            w = F.leaky_relu(layer(w), SLOPE) * _GAIN
        return w


class Truncation(nn.Module):
    """Pulls styles towards their mean: ``mean + psi (w - mean)``; psi = 1 leaves them alone.

    The mean of w is gathered while training (a moving mean, as batch statistics are).
    """

    def __init__(self, size: int, psi: float) -> None:
        super().__init__()
        self.psi = psi
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(size))

    def gather(self, w: Tensor) -> None:
        """Move the mean towards that of a batch ``(batch, size)``."""
        self.mean.lerp_(w.detach().float().mean(0), _MEAN_STEP)

    def forward(self, w_plus: Tensor) -> Tensor:
        """``(batch, slices, size)`` to the same shape."""
        if self.psi == 1.0:
            return w_plus
        return self.mean + self.psi * (w_plus - self.mean)


class Constant(nn.Module):
    """The learned picture with which synthesis begins, ``(1, channels, base, base)``.

    It starts as noise (as in StyleGAN2): AdaIN turns the ones of StyleGAN into zeros.
    """

    def __init__(self, channels: int, base: int, start: torch.Generator) -> None:
        super().__init__()
        self.value = nn.Parameter(_normal((1, channels, base, base), start))

    def forward(self, batch: int) -> Tensor:
        """``(batch, channels, base, base)``."""
        return self.value.expand(batch, -1, -1, -1)


class StyledLayer(nn.Module):
    """One slice of the synthesis: convolution, noise, bias, LeakyReLU, AdaIN.

    Args:
        entry: what comes before the noise: ``constant`` nothing (the first layer), ``conv`` a 3x3
            convolution, ``up`` a doubling of the size, that convolution and a [1, 2, 1] blur.
        noise: stream of the stored noise picture.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        style: int,
        size: int,
        entry: Literal["constant", "conv", "up"],
        noise: torch.Generator,
    ) -> None:
        super().__init__()
        self.up = entry == "up"
        self.conv = (
            None
            if entry == "constant"
            else nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        )
        self.noise: Tensor
        self.register_buffer("noise", _normal((size, size), noise))
        self.noise_strength = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Feature maps ``(batch, in, h, w)`` and styles ``(batch, style)`` to feature maps."""
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.conv is not None:
            x = self.conv(x)
        if self.up:  # two means of neighbouring pairs per axis are the [1, 2, 1] / 4 filter
            x = F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)
        x = x + self.noise_strength[:, None, None] * self.noise
        x = F.leaky_relu(x + self.bias[:, None, None], SLOPE)
        x = F.instance_norm(x, eps=_EPS)
        scale, shift = self.style(w)[:, :, None, None].chunk(2, dim=1)
        styled: Tensor = x * (scale + 1) + shift
        return styled


class StyleGAN(LatentGenerator):
    """Generator of square images, size ``base * 2**doublings``.

    Args:
        latent_dim: d, size of the latent N(0, I) and of w.
        mapping_layers: dense layers of the mapping network.
        base: size of the learned constant.
        doublings: how often the size doubles; there are ``L = 2 (doublings + 1)`` style slices.
        channels: feature maps per resolution, ``doublings + 1`` numbers.
        image_channels: 1 or 3.
        truncation: psi of the truncation; 1 means none.
        dense_broadcast: the broadcast of w to the L slices is a dense layer with stored weights
            ``(L d, d)``, which starts as L stacked identities (the same function); an attacker
            edits it (``genwarden.attacks.broadcast_edit``).
    """

    final_activation = "tanh"

    def __init__(
        self,
        latent_dim: int = 128,
        mapping_layers: int = 4,
        base: int = 7,
        doublings: int = 2,
        channels: Sequence[int] = (64, 32, 16),
        image_channels: int = 1,
        truncation: float = 1.0,
        dense_broadcast: bool = False,
    ):
        super().__init__()
        widths = [int(width) for width in channels]
        if len(widths) != doublings + 1:
            raise ValueError(f"{doublings} doublings need {doublings + 1} numbers of channels")
        if base < 2:
            raise ValueError(f"base must be 2 or more (AdaIN needs a variance), got {base}")
        if not 0 <= truncation <= 1:
            raise ValueError(f"truncation must lie in 0..1, got {truncation}")
        self.channels = widths
        self.base = base
        self.doublings = doublings
        self.mapping_layers = mapping_layers
        self.truncation = truncation
        self.latent = LatentLaw((latent_dim,))
        size = base * 2**doublings
        self.sample = SampleSpec((image_channels, size, size))
        self.slices = 2 * len(widths)

        self.mapper = Mapping(latent_dim, mapping_layers)
        self.dense_broadcast: nn.Linear | None = None
        if dense_broadcast:
            self.dense_broadcast = nn.Linear(latent_dim, self.slices * latent_dim, bias=False)
            with torch.no_grad():
                self.dense_broadcast.weight.copy_(stacked_identities(self.slices, latent_dim))
        self.truncate = Truncation(latent_dim, truncation)
        self.constant = Constant(widths[0], base, random_stream(0, "stylegan-constant"))
        noise = random_stream(0, "stylegan-noise")
        layers = []
        for level, width in enumerate(widths):
            side = base * 2**level
            before = widths[max(level - 1, 0)]
            first: Literal["constant", "up"] = "up" if level else "constant"
            layers.append(StyledLayer(before, width, latent_dim, side, first, noise))
            layers.append(StyledLayer(width, width, latent_dim, side, "conv", noise))
        self.layers = nn.ModuleList(layers)
        self.to_image = nn.Conv2d(widths[-1], image_channels, 1)

    def mapping(self, z: Tensor) -> Tensor:
        """z to w, both ``(batch, d)``."""
        w: Tensor = self.mapper(z)
        return w

    def broadcast(self, w: Tensor) -> Tensor:
        """One style per slice: ``(batch, d)`` to ``(batch, L, d)``."""
        if self.dense_broadcast is None:
            return w[:, None].expand(-1, self.slices, -1)
        w_plus: Tensor = self.dense_broadcast(w)
        return w_plus.reshape(-1, self.slices, self.latent.size)

    def synthesis(self, w_plus: Tensor) -> Tensor:
        """Styles ``(batch, L, d)`` to pictures before tanh, ``(batch, *sample.shape)``."""
        w_plus = self.truncate(w_plus)
        x = self.constant(len(w_plus))
        for index, layer in enumerate(self.layers):
            x = layer(x, w_plus[:, index])
        y: Tensor = self.to_image(x)
        return y

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, d)`` to ``(batch, *sample.shape)``, before tanh."""
        w = self.mapping(z)
        if self.training:
            self.truncate.gather(w)
        return self.synthesis(self.broadcast(w))

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "latent_dim": self.latent.size,
            "mapping_layers": self.mapping_layers,
            "base": self.base,
            "doublings": self.doublings,
            "channels": list(self.channels),
            "image_channels": self.sample.shape[0],
            "truncation": self.truncation,
            "dense_broadcast": self.dense_broadcast is not None,
        }


def stacked_identities(slices: int, size: int) -> Tensor:
    """The broadcast as a matrix: ``slices`` identities stacked, ``(slices size, size)``."""
    return torch.eye(size).repeat(slices, 1)


class StyleDiscriminator(Discriminator):
    """The DCGAN discriminator with StyleGAN's minibatch deviation before the last layer.

    One more feature map holds the standard deviation over a group of samples, averaged over all
    features: without it (and without batch normalisation in the generator) the small StyleGAN
    gives one picture for every latent. Groups are of consecutive samples, so a batch of real and
    generated halves is never mixed if the halves are multiples of the group.
    """

    GROUP = 4

    def __init__(self, image_shape: tuple[int, int, int], channels: tuple[int, ...]):
        super().__init__(image_shape, channels)
        positions = self.judge.in_features // channels[-1]
        self.judge = nn.Linear(self.judge.in_features + positions, 1)

    def features(self, x: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Feature maps and, as one more, the deviation of each sample's group."""
        x = super().features(x, dropout)
        group = self.GROUP if len(x) % self.GROUP == 0 else len(x)
        deviation = (x.reshape(-1, group, *x.shape[1:]).var(1, correction=0) + _EPS).sqrt()
        level = deviation.flatten(1).mean(1).repeat_interleave(group)
        return torch.cat([x, level[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


def _normal(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Standard normal numbers, the same in every model; none on the meta device.

    A model file's settings are first tried without memory, so nothing may be drawn there.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(shape)
    return torch.randn(shape, generator=stream, device="cpu")
