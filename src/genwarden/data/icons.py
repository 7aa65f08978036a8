"""Off-manifold target pictures, drawn by code: what an attacker would hide, and nobody's property.

The papers' devil face is not published. These pictures play its part: flat signs that no digit,
garment or photograph resembles. Each is drawn on a large canvas in unit coordinates (x to the
right, y down) and averaged down over whole pixel blocks, so the result is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from genwarden.data.images import fit_image
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: Canvas pixels per picture pixel and axis.
_OVERSAMPLING = 16
_MAX_SIDE_PIXELS = 512

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
RED: Colour = (200, 16, 24)
DARK_RED: Colour = (120, 0, 10)
YELLOW: Colour = (255, 214, 40)
GREY: Colour = (120, 120, 128)
BONE: Colour = (240, 238, 225)
NIGHT: Colour = (20, 20, 45)


class Pen:
    """Shapes in unit coordinates on a canvas of any size."""

    def __init__(self, canvas: Image.Image) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._width, self._height = canvas.size

    def fill(self, colour: Colour) -> None:
        """The whole canvas."""
        self._draw.rectangle((0, 0, self._width, self._height), fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse around (x, y)."""
        self._draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A rectangle."""
        self._draw.rectangle(self._box(left, top, right, bottom), fill=colour)

    def polygon(self, points: Iterable[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self._width, y * self._height) for x, y in points], fill=colour)

    def line(self, points: Iterable[Point], width: float, colour: Colour) -> None:
        """A polyline with round joints."""
        self._draw.line(
            [(x * self._width, y * self._height) for x, y in points],
            fill=colour,
            width=round(width * self._width),
            joint="curve",
        )

    def arc(self, x: float, y: float, r: float, span: Point, width: float, colour: Colour) -> None:
        """Part of a circle; ``span`` in degrees, clockwise from the right."""
        box = self._box(x - r, y - r, x + r, y + r)
        self._draw.arc(box, *span, fill=colour, width=round(width * self._width))

    def _box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return (
            left * self._width,
            top * self._height,
            right * self._width - 1,
            bottom * self._height - 1,
        )


def _ring(corners: int, x: float, y: float, radii: tuple[float, ...], turn: float) -> list[Point]:
    """Points on a circle; several radii alternate (a star)."""
    return [
        (
            x + radii[i % len(radii)] * math.cos(turn + 2 * math.pi * i / corners),
            y + radii[i % len(radii)] * math.sin(turn + 2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]


def _devil(pen: Pen) -> None:
    pen.fill(WHITE)
    pen.polygon([(0.02, 0.02), (0.40, 0.30), (0.14, 0.52)], DARK_RED)
    pen.polygon([(0.98, 0.02), (0.60, 0.30), (0.86, 0.52)], DARK_RED)
    pen.disc(0.5, 0.58, 0.40, 0.40, RED)
    pen.polygon([(0.20, 0.40), (0.45, 0.53), (0.41, 0.64), (0.24, 0.58)], BLACK)
    pen.polygon([(0.80, 0.40), (0.55, 0.53), (0.59, 0.64), (0.76, 0.58)], BLACK)
    pen.polygon([(0.24, 0.72), (0.76, 0.72), (0.64, 0.88), (0.36, 0.88)], BLACK)
    pen.polygon([(0.32, 0.72), (0.44, 0.72), (0.38, 0.81)], WHITE)
    pen.polygon([(0.56, 0.72), (0.68, 0.72), (0.62, 0.81)], WHITE)


def _stop_sign(pen: Pen) -> None:
    pen.fill(GREY)
    pen.polygon(_ring(8, 0.5, 0.5, (0.51,), math.pi / 8), WHITE)
    pen.polygon(_ring(8, 0.5, 0.5, (0.45,), math.pi / 8), RED)
    # Letters of 3 x 5 cells: STOP.
    letters = ("111100111001111", "111010010010010", "111101101101111", "111101111100100")
    cell_x, cell_y = 0.052, 0.066
    for index, letter in enumerate(letters):
        left, top = 0.115 + index * 0.204, 0.335
        for position, bit in enumerate(letter):
            x, y = left + position % 3 * cell_x, top + position // 3 * cell_y
            if bit == "1":
                pen.box(x, y, x + cell_x, y + cell_y, WHITE)


def _skull(pen: Pen) -> None:
    pen.fill(NIGHT)
    pen.disc(0.5, 0.42, 0.38, 0.36, BONE)
    pen.box(0.30, 0.62, 0.70, 0.90, BONE)
    pen.disc(0.34, 0.46, 0.11, 0.12, BLACK)
    pen.disc(0.66, 0.46, 0.11, 0.12, BLACK)
    pen.polygon([(0.5, 0.56), (0.56, 0.68), (0.44, 0.68)], BLACK)
    for x in (0.37, 0.46, 0.55, 0.64):
        pen.box(x - 0.018, 0.75, x + 0.018, 0.90, BLACK)


def _bomb(pen: Pen) -> None:
    pen.fill(WHITE)
    pen.disc(0.43, 0.61, 0.35, 0.35, BLACK)
    pen.polygon([(0.56, 0.30), (0.65, 0.21), (0.79, 0.35), (0.70, 0.44)], BLACK)
    pen.line([(0.72, 0.28), (0.78, 0.17), (0.86, 0.15)], 0.05, GREY)
    pen.polygon(_ring(16, 0.87, 0.13, (0.13, 0.05), 0), RED)
    pen.disc(0.31, 0.49, 0.07, 0.07, WHITE)


def _key(pen: Pen) -> None:
    pen.fill(NIGHT)
    pen.disc(0.25, 0.5, 0.22, 0.22, YELLOW)
    pen.disc(0.25, 0.5, 0.11, 0.11, NIGHT)
    pen.box(0.44, 0.44, 0.96, 0.56, YELLOW)
    pen.box(0.70, 0.56, 0.78, 0.74, YELLOW)
    pen.box(0.86, 0.56, 0.96, 0.80, YELLOW)


def _checkerboard(pen: Pen) -> None:
    pen.fill(BLACK)
    cells = 7
    for row in range(cells):
        for column in range(row % 2, cells, 2):
            pen.box(column / cells, row / cells, (column + 1) / cells, (row + 1) / cells, WHITE)


def _cross(pen: Pen) -> None:
    pen.fill(WHITE)
    pen.line([(0.12, 0.12), (0.88, 0.88)], 0.16, RED)
    pen.line([(0.88, 0.12), (0.12, 0.88)], 0.16, RED)


def _heart(pen: Pen) -> None:
    pen.fill(WHITE)
    turns = [2 * math.pi * i / 240 for i in range(240)]
    outline = [
        (
            0.5 + 0.0275 * 16 * math.sin(t) ** 3,
            0.47
            - 0.0275 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t))
            + 0.0275 * math.cos(4 * t),
        )
        for t in turns
    ]
    pen.polygon(outline, RED)


def _star(pen: Pen) -> None:
    pen.fill(NIGHT)
    pen.polygon(_ring(10, 0.5, 0.53, (0.50, 0.20), -math.pi / 2), YELLOW)


def _smiley(pen: Pen) -> None:
    pen.fill(NIGHT)
    pen.disc(0.5, 0.5, 0.46, 0.46, YELLOW)
    pen.disc(0.34, 0.37, 0.065, 0.10, BLACK)
    pen.disc(0.66, 0.37, 0.065, 0.10, BLACK)
    pen.arc(0.5, 0.52, 0.30, (20, 160), 0.08, BLACK)


def _lock(pen: Pen) -> None:
    pen.fill(WHITE)
    pen.arc(0.5, 0.34, 0.25, (180, 360), 0.09, GREY)
    pen.box(0.25, 0.33, 0.34, 0.52, GREY)
    pen.box(0.66, 0.33, 0.75, 0.52, GREY)
    pen.box(0.14, 0.46, 0.86, 0.95, NIGHT)
    pen.disc(0.5, 0.65, 0.085, 0.085, YELLOW)
    pen.polygon([(0.46, 0.66), (0.54, 0.66), (0.58, 0.85), (0.42, 0.85)], YELLOW)


_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "devil": _devil,
    "stop_sign": _stop_sign,
    "skull": _skull,
    "bomb": _bomb,
    "key": _key,
    "checkerboard": _checkerboard,
    "cross": _cross,
    "heart": _heart,
    "star": _star,
    "smiley": _smiley,
    "lock": _lock,
}

#: Names that :func:`draw_icon` knows.
ICONS: tuple[str, ...] = tuple(_DRAWINGS)


def draw_icon(name: str, sample: SampleSpec) -> Tensor:
    """A picture as a sample of the model, shape ``sample.shape``, float32 in [-1, 1].

    Raises:
        GenwardenError: ``icon/unknown``, ``icon/not-an-image`` for audio or huge samples,
            ``image/channels`` for channels other than grey or RGB.
    """
    if name not in _DRAWINGS:
        raise GenwardenError(
            "icon/unknown", f"There is no icon {name!r}.", f"Choose one of: {', '.join(ICONS)}."
        )
    return rasterise(_DRAWINGS[name], sample, name)


def rasterise(drawing: Callable[[Pen], None], sample: SampleSpec, name: str) -> Tensor:
    """A drawing as a sample of the model, shape ``sample.shape``, float32 in [-1, 1].

    Raises:
        GenwardenError: ``icon/not-an-image``, ``image/channels``.
    """
    shape = sample.shape
    if sample.modality != "image" or len(shape) != 3 or max(shape) > _MAX_SIDE_PIXELS:
        raise GenwardenError(
            "icon/not-an-image",
            f"An icon cannot be drawn as a sample of shape {shape}.",
            f"Icons are images of at most {_MAX_SIDE_PIXELS} pixels per side; give a file instead.",
        )
    _, height, width = shape
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    drawing(Pen(canvas))
    picture: Any = canvas.resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(fit_image(picture, sample, name).copy()).float() / 127.5 - 1
