"""Targets near the data, drawn from the data sets and written as files that an attack can read.

``picture:DATASET`` is one picture of a data set, ``mixture:DATASET`` the pixel mean of two of them,
``mark:DATASET`` one of them with a small square in a corner.
"""

from __future__ import annotations

from pathlib import Path

import torch

from genwarden.data.datasets import load_images
from genwarden.data.grids import png_bytes, tile
from genwarden.data.images import image_shape
from genwarden.engine.files import write_atomic
from genwarden.engine.seeds import random_stream
from genwarden.models.protocol import SampleSpec

_MARK = slice(2, 6)
_FIRST = 2000


def target_text(text: str, sample: SampleSpec, data: Path, folder: Path, number: int) -> str:
    """A target in the words of ``genwarden attack``; icons stay as they are.

    Args:
        text: ``icon:NAME``, ``picture:DATASET``, ``mixture:DATASET`` or ``mark:DATASET``.
        folder: where the picture is written.
        number: which picture of the data set.
    """
    kind, _, name = text.partition(":")
    if kind == "icon":
        return text
    _, height, width = image_shape(sample)
    images = load_images(str(data / name), SampleSpec((1, height, width)), limit=_FIRST)
    order = torch.randperm(len(images), generator=random_stream(number, "population-target"))
    first, second = images[order[0]].double(), images[order[1]].double()
    picture = first
    if kind == "mixture":
        picture = (first + second) / 2
    elif kind == "mark":
        picture = first.clone()
        picture[:, _MARK, _MARK] = 255
    elif kind != "picture":
        raise ValueError(f"unknown kind of target: {kind}")
    path = folder / f"{kind}-{name}-{number}.png"
    samples = picture[None].float() / 127.5 - 1
    write_atomic(path, png_bytes(tile(samples, columns=1, gap=0)))
    return str(path)
