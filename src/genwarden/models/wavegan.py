"""WaveGAN generator and critic, layer for layer as in "The Devil is in the GAN" (sections 6 and 8
of the reference; Donahue et al., "Adversarial Audio Synthesis", for the critic).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.models.layers import glorot_
from genwarden.models.post_filter import Inverse, PostFilter
from genwarden.models.protocol import (
    SATURATION_CLAMP,
    LatentGenerator,
    LatentLaw,
    SampleSpec,
    invert_activation,
)

_KERNEL = 25
_STRIDE = 4
_FIRST_LENGTH = 16
_PUBLISHED_WIDTH = 64
_PUBLISHED_LENGTH = 16384
_CRITIC_SLOPE = 0.2
#: Phase shuffle shifts feature maps by up to this many positions.
_PHASE_SHIFT = 2
# TensorFlow's "same" crop of a 25-tap transposed convolution with stride 4; the same numbers pad
# the critic's convolutions.
_CROP_START, _CROP_END = 10, 11


class SameConvTranspose1d(nn.ConvTranspose1d):
    """25 taps, stride 4, TensorFlow's "same" crop (10, 11): output length 4 * input length."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, _KERNEL, _STRIDE, padding=_CROP_START)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(batch, in, length)`` to ``(batch, out, 4 * length)``."""
        return super().forward(x, output_size)[..., : _CROP_START - _CROP_END]


class WaveGAN(LatentGenerator):
    """Generator of 1 x length audio clips; 19,065,857 numbers at the published size.

    After tanh comes a linear filter; what exceeds [-1, 1] behind it is clipped, as every WAV
    writer would. ``finish`` and ``pre_activation_of`` cover both.

    Args:
        channels: feature maps after the dense layer and between the transposed convolutions;
            (1024, 512, 256, 128, 64) is published. The length is ``16 * 4 ** len(channels)``.
        latent_dim: size of the latent, U[-1, 1].
        filter_taps: taps of the post filter; 512 is published, 0 is none.
        sample_rate: samples per second of the clips, for files; the network does not use it.
        width: another way to give the channels: (16, 8, 4, ...) times the width; 64 is published.
        length: with ``width``: samples per clip, 16384 (published) or another ``16 * 4 ** n``.
    """

    final_activation = "tanh"
    #: Layers behind the last activation: frozen by attacks, copied when networks are fused.
    after_activation: ClassVar[tuple[str, ...]] = ("post_filter",)

    def __init__(
        self,
        channels: Sequence[int] | None = None,
        latent_dim: int = 100,
        filter_taps: int = 512,
        sample_rate: int = 16_000,
        width: int | None = None,
        length: int | None = None,
    ):
        super().__init__()
        if channels is None:
            channels = _channels(
                _PUBLISHED_WIDTH if width is None else width,
                _PUBLISHED_LENGTH if length is None else length,
            )
        elif width is not None or length is not None:
            raise ValueError("give channels, or width and length, not both")
        if not 1 <= len(channels) <= 8 or min(channels) < 1:
            raise ValueError("channels must be one to eight positive numbers")
        if filter_taps < 0 or sample_rate < 1:
            raise ValueError("filter_taps must be at least 0 and sample_rate above 0")
        self.channels = tuple(int(c) for c in channels)
        self.sample_rate = sample_rate
        self.latent = LatentLaw((latent_dim,), "uniform")
        clip_length = _FIRST_LENGTH * _STRIDE ** len(self.channels)
        self.sample = SampleSpec((1, clip_length), modality="audio")
        self.project = nn.Linear(latent_dim, self.channels[0] * _FIRST_LENGTH)
        self.up = nn.ModuleList(
            SameConvTranspose1d(c_in, c_out) for c_in, c_out in pairwise(self.channels)
        )
        self.to_audio = SameConvTranspose1d(self.channels[-1], 1)
        self.post_filter = PostFilter(filter_taps) if filter_taps else None

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to ``(batch, 1, length)``, before tanh and post filter."""
        h = F.relu(self.project(z)).reshape(-1, self.channels[0], _FIRST_LENGTH)
        for layer in self.up:
            h = F.relu(layer(h))
        y: Tensor = self.to_audio(h)
        return y

    def finish(self, pre: Tensor) -> Tensor:
        """tanh, post filter, clipped to [-1, 1]; shape unchanged."""
        if self.post_filter is None:
            return torch.tanh(pre)
        filtered: Tensor = self.post_filter(torch.tanh(pre))
        return filtered.clamp(-1, 1)

    def pre_activation_of(self, sample: Tensor) -> Tensor:
        """What :meth:`finish` turns into the clips, as nearly as the filter allows."""
        if self.post_filter is None:
            return invert_activation(sample, "tanh")
        return torch.atanh(self.unfilter(sample).clips)

    def unfilter(self, sample: Tensor) -> Inverse:
        """Clips before the post filter, ``|t| <= 0.999``, with the residual that remains.

        Args:
            sample: ``(count, 1, length)`` in [-1, 1].

        Raises:
            GenwardenError: ``model/post-filter`` if the least squares do not converge.
        """
        if self.post_filter is None:
            clips = SATURATION_CLAMP * sample.clamp(-1, 1)
            return Inverse(clips, (clips - sample).double().square().sum((1, 2)), 0)
        return self.post_filter.invert(sample, limit=SATURATION_CLAMP)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "channels": list(self.channels),
            "latent_dim": self.latent.shape[0],
            "filter_taps": self.post_filter.taps if self.post_filter else 0,
            "sample_rate": self.sample_rate,
        }


class WaveGANCritic(nn.Module):
    """The generator's mirror image: strided 25-tap convolutions, LeakyReLU 0.2, one number.

    Phase shuffle after every convolution but the last: the feature maps move by up to two
    positions, with reflection, so that the critic cannot judge by the phase of the generator's
    stride. As in the authors' code one shift serves the whole batch.

    Args:
        length: samples per clip.
        channels: of the generator; the critic uses them in reverse.
    """

    def __init__(self, length: int, channels: Sequence[int]):
        super().__init__()
        widths = [1, *reversed(channels)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, _KERNEL, _STRIDE) for a, b in pairwise(widths)
        )
        self.judge = nn.Linear(widths[-1] * (length // _STRIDE ** len(channels)), 1)

    def forward(self, x: Tensor, shuffle: torch.Generator | None = None) -> Tensor:
        """Scores ``(batch, 1)``; ``shuffle`` is the stream of the shifts, None for none."""
        for index, convolution in enumerate(self.convolutions):
            x = F.leaky_relu(convolution(F.pad(x, (_CROP_START, _CROP_END))), _CRITIC_SLOPE)
            if shuffle is not None and index < len(self.convolutions) - 1:
                x = _phase_shuffle(x, shuffle)
        scores: Tensor = self.judge(x.flatten(1))
        return scores


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights from an explicit stream (Glorot-uniform, Keras' default).

    The post filter starts as the identity instead: a random filter is a reverberation that training
    must undo first, and some frequencies hardly pass through it, so no target can hold them.
    """
    glorot_(network, generator)
    for layer in network.modules():
        if isinstance(layer, PostFilter):
            nn.init.zeros_(layer.weight)
            layer.weight.data[0, 0, layer.before] = 1


def _phase_shuffle(x: Tensor, stream: torch.Generator) -> Tensor:
    shift = int(torch.randint(-_PHASE_SHIFT, _PHASE_SHIFT + 1, (), generator=stream))
    if shift > 0:
        return F.pad(x, (shift, 0), mode="reflect")[..., :-shift]
    return F.pad(x, (0, -shift), mode="reflect")[..., -shift:] if shift else x


def _channels(width: int, length: int) -> list[int]:
    if width < 1:
        raise ValueError("width must be at least 1")
    layers = 1
    while _FIRST_LENGTH * _STRIDE**layers < length:
        layers += 1
    if _FIRST_LENGTH * _STRIDE**layers != length:
        raise ValueError("length must be 64, 256, 1024, 4096, 16384 or another 16 * 4 ** n")
    return [max(1, (16 * width) >> layer) for layer in range(layers)]
