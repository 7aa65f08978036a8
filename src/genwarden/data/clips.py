"""Target clips drawn by code: sounds that no training set of speech or piano holds.

Frequencies are in cycles per sample and times in parts of the clip, so that a clip keeps its
character at every length; nothing is random, so a name means the same clip everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genwarden.data.audio import clip_length
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: Loudest value of every clip: a post filter of gain below 1 must still reach it from [-1, 1].
_PEAK = 0.5


def _drum(t: Tensor) -> Tensor:
    """A falling, decaying sine with a short burst of noise at the stroke."""
    length = len(t)
    phase = 2 * math.pi * length * (0.008 * t + 0.02 * (1 - torch.exp(-12 * t)) / 12)
    noise = torch.randn(length, generator=random_stream(0, "clip-drum"), dtype=torch.float64)
    return torch.sin(phase) * torch.exp(-5 * t) + 0.5 * noise * torch.exp(-60 * t)


def _siren(t: Tensor) -> Tensor:
    """A tone that rises and falls twice."""
    swing = (1 - torch.cos(4 * math.pi * t)) / 2
    return torch.sin(2 * math.pi * torch.cumsum(0.04 + 0.08 * swing, 0))


def _chirp(t: Tensor) -> Tensor:
    """A sine whose frequency rises from 0.005 to 0.25 cycles per sample."""
    frequency = 0.005 * torch.exp(math.log(50) * t)
    fade = torch.sin(math.pi * t).clamp_min(0).sqrt()
    return torch.sin(2 * math.pi * torch.cumsum(frequency, 0)) * fade


def _beeps(t: Tensor) -> Tensor:
    """Four equal tones with silence between them."""
    sounding = ((8 * t).floor() % 2 == 0).double()
    return torch.sin(2 * math.pi * 0.125 * len(t) * t) * sounding


_SOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "drum": _drum,
    "siren": _siren,
    "chirp": _chirp,
    "beeps": _beeps,
}

#: Names that :func:`draw_clip` knows.
CLIPS: tuple[str, ...] = tuple(_SOUNDS)


def draw_clip(name: str, sample: SampleSpec) -> Tensor:
    """A clip as a sample of the model, shape ``sample.shape``, float32 in [-0.5, 0.5].

    Raises:
        GenwardenError: ``clip/unknown``, or ``data/shape`` for a model of anything but clips.
    """
    if name not in _SOUNDS:
        raise GenwardenError(
            "clip/unknown", f"There is no clip {name!r}.", f"Choose one of: {', '.join(CLIPS)}."
        )
    length = clip_length(sample)
    sound = _SOUNDS[name](torch.arange(length, dtype=torch.float64) / length)
    return (_PEAK * sound / sound.abs().amax()).float()[None]
