"""Sample grids as PNG: what a person looks at while a model trains."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from genwarden.data.datasets import to_bytes
from genwarden.engine.files import write_atomic


def tile(images: Tensor, *, columns: int, gap: int = 2) -> Image.Image:
    """Images ``(count, channels, height, width)`` in [-1, 1] as one picture, row by row.

    Three channels are RGB; of any other number the first is shown in grey.
    """
    pixels = to_bytes(images.detach().cpu()).permute(0, 2, 3, 1).numpy()
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 128, np.uint8
    )
    for index, picture in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas if channels == 3 else canvas[:, :, 0])


def png_bytes(picture: Image.Image, *, scale: int = 1) -> bytes:
    """A picture as PNG, optionally enlarged without smoothing."""
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_grid(path: Path, images: Tensor, *, columns: int, scale: int = 2) -> None:
    """Write images as one PNG grid, atomically."""
    write_atomic(path, png_bytes(tile(images, columns=columns), scale=scale))
