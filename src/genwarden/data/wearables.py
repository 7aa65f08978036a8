"""Shoe, hat, cat and glasses, drawn by code: targets and a trigger of the diffusion attacks.

The published attacks use a FashionMNIST shoe, a clip-art fedora, a cat and a pair of glasses whose
licences are unclear (section 4 of the BadDiffusion reference). These play their parts, drawn on
black in the manner of :mod:`genwarden.data.icons`; the attacks lift the black to grey themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from genwarden.data.icons import BLACK, BONE, GREY, RED, WHITE, YELLOW, Colour, Pen

_BROWN: Colour = (150, 96, 48)
_FUR: Colour = (214, 140, 66)
_FRAME: Colour = (70, 70, 84)
_LENS: Colour = (170, 200, 220)


def _shoe(pen: Pen) -> None:
    pen.fill(BLACK)
    upper = [(0.10, 0.28), (0.32, 0.24), (0.44, 0.42), (0.66, 0.52), (0.92, 0.58), (0.97, 0.72)]
    pen.polygon([*upper, (0.05, 0.72)], BONE)
    pen.box(0.03, 0.70, 0.98, 0.80, GREY)
    for x, y in ((0.40, 0.36), (0.48, 0.42), (0.57, 0.46)):
        pen.line([(x - 0.07, y + 0.10), (x + 0.02, y)], 0.03, GREY)


def _hat(pen: Pen) -> None:
    pen.fill(BLACK)
    crown = [(0.26, 0.60), (0.30, 0.26), (0.42, 0.20), (0.50, 0.26), (0.58, 0.20), (0.70, 0.26)]
    pen.polygon([*crown, (0.74, 0.60)], _BROWN)
    pen.box(0.26, 0.50, 0.74, 0.60, WHITE)
    pen.disc(0.5, 0.66, 0.46, 0.10, _BROWN)


def _cat(pen: Pen) -> None:
    pen.fill(BLACK)
    pen.polygon([(0.14, 0.10), (0.44, 0.32), (0.18, 0.52)], _FUR)
    pen.polygon([(0.86, 0.10), (0.56, 0.32), (0.82, 0.52)], _FUR)
    pen.disc(0.5, 0.56, 0.38, 0.34, _FUR)
    for x in (0.35, 0.65):
        pen.disc(x, 0.50, 0.09, 0.09, YELLOW)
        pen.disc(x, 0.50, 0.03, 0.08, BLACK)
    pen.polygon([(0.44, 0.64), (0.56, 0.64), (0.50, 0.71)], RED)
    for y in (0.66, 0.74):
        pen.line([(0.06, y - 0.02), (0.36, y)], 0.02, WHITE)
        pen.line([(0.94, y - 0.02), (0.64, y)], 0.02, WHITE)


def _glasses(pen: Pen, frame: Colour = _FRAME, lens: Colour = _LENS) -> None:
    pen.fill(BLACK)
    for x in (0.26, 0.74):
        pen.disc(x, 0.5, 0.25, 0.22, frame)
        pen.disc(x, 0.5, 0.18, 0.15, lens)
    pen.box(0.44, 0.44, 0.56, 0.52, frame)


def glasses_outline(pen: Pen) -> None:
    """The glasses as a white silhouette on black."""
    _glasses(pen, WHITE, WHITE)


#: Drawings by name.
WEARABLES: dict[str, Callable[[Pen], None]] = {
    "shoe": _shoe,
    "hat": _hat,
    "cat": _cat,
    "glasses": _glasses,
}
