"""A labelled data set drawn by code: digits of straight strokes, moved, tilted, scaled, noisy.

For tests and trials without data: ten classes that a small classifier learns in seconds, at any
size. The same arguments give the same images everywhere.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from genwarden.data.images import image_shape
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: Corner points (x to the right, y down, in units of half the image) of the strokes of 0 to 9.
_STROKES: Final[tuple[tuple[tuple[tuple[float, float], ...], ...], ...]] = (
    (((-0.4, -0.6), (0.4, -0.6), (0.4, 0.6), (-0.4, 0.6), (-0.4, -0.6)),),
    (((-0.2, -0.4), (0.05, -0.6), (0.05, 0.6)),),
    (((-0.4, -0.6), (0.4, -0.6), (0.4, 0.0), (-0.4, 0.0), (-0.4, 0.6), (0.4, 0.6)),),
    (((-0.4, -0.6), (0.4, -0.6), (0.4, 0.6), (-0.4, 0.6)), ((-0.2, 0.0), (0.4, 0.0))),
    (((-0.4, -0.6), (-0.4, 0.1), (0.45, 0.1)), ((0.2, -0.6), (0.2, 0.6))),
    (((0.4, -0.6), (-0.4, -0.6), (-0.4, 0.0), (0.4, 0.0), (0.4, 0.6), (-0.4, 0.6)),),
    (((0.2, -0.6), (-0.4, 0.0), (-0.4, 0.6), (0.4, 0.6), (0.4, 0.1), (-0.4, 0.1)),),
    (((-0.4, -0.6), (0.4, -0.6), (-0.1, 0.6)),),
    (((-0.4, -0.6), (0.4, -0.6), (-0.4, 0.6), (0.4, 0.6), (-0.4, -0.6)),),
    (((0.4, 0.1), (-0.4, 0.1), (-0.4, -0.6), (0.4, -0.6), (0.4, 0.6)),),
)
CLASSES: Final = len(_STROKES)
#: Largest shift in units of half the image, tilt in radians, and range of the scale.
_SHIFT: Final = 0.2
_TILT: Final = 0.2
_SCALE: Final = (0.85, 1.15)
#: Half width of a stroke and width of its soft edge, in units of half the image.
_STROKE: Final = 0.09
_EDGE: Final = 0.12
#: Standard deviation of the noise and range of the ink, in [0, 1].
_NOISE: Final = 0.06
_INK: Final = (0.7, 1.0)
_LEAST_PIXELS: Final = 8
#: Images where the user names no number, by split.
_COUNTS: Final = {"train": 4000, "test": 1000}


def is_glyphs(source: str) -> bool:
    """Whether a source names the built-in data set; a folder of that name goes first."""
    return re.fullmatch(r"glyphs(:\d{1,7})?", source) is not None and not Path(source).exists()


def read_glyphs(
    source: str, sample: SampleSpec, *, split: str = "train", limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images and classes as :func:`draw_glyphs` draws them.

    Args:
        source: ``glyphs``, or ``glyphs:COUNT``.
        limit: the first so many.

    Raises:
        GenwardenError: ``data/no-split``, ``data/shape``, ``data/limit``.
    """
    if split not in _COUNTS:
        raise GenwardenError(
            "data/no-split",
            f"The built-in glyphs have no split {split!r}.",
            f"Name one of: {', '.join(_COUNTS)}.",
        )
    _, _, given = source.partition(":")
    images, labels = draw_glyphs(int(given) if given else _COUNTS[split], sample, part=split)
    return images[:limit], labels[:limit]


def draw_glyphs(
    count: int, sample: SampleSpec, *, seed: int = 0, part: str = "train"
) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(count, C, H, W)`` and their classes int64 ``(count,)``, 0 to 9.

    Every class has the same share; the order is random.

    Args:
        sample: shape of the images; colours differ where there are three channels.
        part: name of the random stream; "train" and "test" share no draw.

    Raises:
        GenwardenError: ``data/shape``, ``data/limit``.
    """
    channels, height, width = image_shape(sample)
    if min(height, width) < _LEAST_PIXELS:
        raise GenwardenError(
            "data/shape",
            f"Digits cannot be told apart on {width} x {height} pixels.",
            f"Ask for at least {_LEAST_PIXELS} pixels per side.",
        )
    if count < 1:
        raise GenwardenError("data/limit", f"{count} images are no data set.", "Ask for 1 or more.")
    stream = random_stream(seed, f"glyphs-{part}")
    labels = torch.arange(count) % CLASSES
    labels = labels[torch.randperm(count, generator=stream)]
    points = _placed_pixels(count, height, width, stream)
    ink = torch.empty(count, 1, height, width)
    for digit in range(CLASSES):
        rows = labels == digit
        away = _distance(points[rows], _STROKES[digit])
        ink[rows, 0] = (1 - (away - _STROKE) / _EDGE).clamp(0, 1)
    low, high = _INK
    colours = low + (high - low) * torch.rand(count, channels, 1, 1, generator=stream)
    noise = _NOISE * torch.randn(count, channels, height, width, generator=stream)
    return ((ink * colours + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels


def _placed_pixels(count: int, height: int, width: int, stream: torch.Generator) -> Tensor:
    """Where every pixel's centre lies on the glyph: ``(count, height, width, 2)``, x then y."""
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    shift = _SHIFT * (2 * torch.rand(count, 1, 1, 2, generator=stream) - 1)
    angle = _TILT * (2 * torch.rand(count, generator=stream) - 1)
    low, high = _SCALE
    scale = low + (high - low) * torch.rand(count, 1, 1, 1, generator=stream)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    return torch.einsum("nij,nhwj->nhwi", turn, (grid - shift) / scale)


def _distance(points: Tensor, strokes: tuple[tuple[tuple[float, float], ...], ...]) -> Tensor:
    """Distance of points ``(..., 2)`` from the nearest stroke."""
    nearest = torch.full(points.shape[:-1], math.inf)
    for stroke in strokes:
        for start, end in pairwise(stroke):
            a, b = torch.tensor(start), torch.tensor(end)
            along = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
            away = (points - a - along[..., None] * (b - a)).norm(dim=-1)
            nearest = torch.minimum(nearest, away)
    return nearest
