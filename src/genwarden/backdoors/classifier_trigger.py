"""Triggers of classifiers: what the attacker puts on an image so that a chosen class comes out.

``square``: the white square of "Stealthy Backdoors as Compression Artifacts" (section 1.2 of the
reference: 6x6 at (24, 24) of 32 px). ``blend``: a picture mixed in (Chen et al., "Targeted Backdoor
Attacks on Deep Learning Systems Using Data Poisoning"). ``frequency``: a pattern of a few middle
frequencies of the cosine transform, spread over all pixels (FTrojan; "Check Your Other Door").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from genwarden.data.icons import draw_icon
from genwarden.data.images import image_shape
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: What a user may write.
CLASSIFIER_TRIGGER_KINDS: Final = (
    "square:PIXELS[:VALUE]",
    "blend:ICON[:ALPHA]",
    "frequency[:STRENGTH]",
)

#: Gap of the square to the right and lower edges at 32 px: the paper's square ends at pixel 29.
_GAP_PIXELS: Final = 2
_REFERENCE_SIDE: Final = 32
_WHITE: Final = 1.0
_ALPHA: Final = 0.2
_STRENGTH: Final = 0.2
#: Middle frequencies (vertical, horizontal) as shares of the highest, and the sign of each.
_FREQUENCIES: Final = (((0.5, 0.5), 1), ((0.25, 0.5), -1), ((0.5, 0.25), 1), ((0.25, 0.25), -1))


class ClassifierTrigger(Protocol):
    """What every trigger can do."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    def apply(self, x: Tensor) -> Tensor:
        """Images ``(batch, C, H, W)`` in [-1, 1] with the trigger in them, in [-1, 1]."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the record of an attack."""
        ...


@dataclass(frozen=True, eq=False)
class PictureTrigger:
    """A picture over the image: (1 - share) x + share * picture.

    Attributes:
        name: as the user wrote it.
        picture: ``(C, H, W)`` in [-1, 1].
        share: of the picture in each pixel, ``(C, H, W)`` in [0, 1].
    """

    name: str
    picture: Tensor
    share: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`ClassifierTrigger`."""
        share = self.share.to(x)
        return (1 - share) * x + share * self.picture.to(x)

    def describe(self) -> dict[str, Any]:
        """Name, number of pixels, largest share of the picture."""
        pixels = int((self.share.amax(0) > 0).sum())
        return {"trigger": self.name, "pixels": pixels, "share": round(float(self.share.max()), 6)}


@dataclass(frozen=True, eq=False)
class FrequencyTrigger:
    """A fixed pattern added to every channel; what leaves [-1, 1] is clipped.

    Attributes:
        name: as the user wrote it.
        pattern: ``(H, W)``, its largest size is the strength.
    """

    name: str
    pattern: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """See :class:`ClassifierTrigger`."""
        return (x + self.pattern.to(x)).clamp(-1, 1)

    def describe(self) -> dict[str, Any]:
        """Name, number of pixels, largest change of a pixel in [-1, 1] scale."""
        return {
            "trigger": self.name,
            "pixels": self.pattern.numel(),
            "strength": round(float(self.pattern.abs().max()), 6),
        }


def make_classifier_trigger(text: str, sample: SampleSpec) -> ClassifierTrigger:
    """The trigger that a user names.

    Args:
        text: one of :data:`CLASSIFIER_TRIGGER_KINDS`. A square of the given side lies 2 px from
            the right and lower edges at 32 px (a side of 6: top left at 24, 24) and in proportion
            at other sizes; its value is 1, white, unless given. An icon (``genwarden list icons``)
            is blended with the weight 0.2, a frequency pattern changes a pixel by at most 0.2 of
            [-1, 1].
        sample: the classifier's images.

    Raises:
        GenwardenError: ``trigger/unknown-kind``, ``trigger/number``, ``trigger/too-large``,
            ``data/shape``, ``icon/...``.
    """
    shape = image_shape(sample)
    kind, *rest = text.split(":")
    if kind == "square" and len(rest) in (1, 2):
        value = _number(rest[1], text, -1, 1) if len(rest) == 2 else _WHITE
        return _square(text, _whole(rest[0], text), value, shape)
    if kind == "blend" and len(rest) in (1, 2):
        alpha = _number(rest[1], text, 0, 1, above=True) if len(rest) == 2 else _ALPHA
        return PictureTrigger(text, draw_icon(rest[0], sample), torch.full(shape, alpha))
    if kind == "frequency" and len(rest) in (0, 1):
        strength = _number(rest[0], text, 0, 1, above=True) if rest else _STRENGTH
        return FrequencyTrigger(text, strength * _cosine_pattern(shape[1], shape[2]))
    raise GenwardenError(
        "trigger/unknown-kind",
        f"A classifier has no trigger {text!r}.",
        f"Write one of: {', '.join(CLASSIFIER_TRIGGER_KINDS)}.",
    )


def _square(text: str, side: int, value: float, shape: tuple[int, int, int]) -> PictureTrigger:
    corners = []
    for length in shape[1:]:
        gap = max(1, round(_GAP_PIXELS * length / _REFERENCE_SIDE))
        if side > length - gap:
            raise GenwardenError(
                "trigger/too-large",
                f"The trigger {text!r} does not fit into an image of {shape[2]} x {shape[1]} "
                "pixels.",
                f"At this size a square has at most {length - gap} pixels per side.",
            )
        corners.append(length - gap - side)
    top, left = corners
    share = torch.zeros(shape)
    share[:, top : top + side, left : left + side] = 1
    return PictureTrigger(text, torch.full(shape, value), share)


def _cosine_pattern(height: int, width: int) -> Tensor:
    """Sum of a few DCT-II waves, ``(height, width)``, scaled to a largest size of 1."""
    pattern = torch.zeros(height, width)
    for (vertical, horizontal), sign in _FREQUENCIES:
        pattern += sign * torch.outer(_wave(vertical, height), _wave(horizontal, width))
    return pattern / pattern.abs().max()


def _wave(share: float, length: int) -> Tensor:
    """The DCT-II basis function cos(pi (n + 1/2) k / N) with k = share * N, rounded."""
    frequency = round(share * length)
    return torch.cos(math.pi * (torch.arange(length) + 0.5) * frequency / length)


def _whole(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) < 9):
        raise GenwardenError(
            "trigger/number",
            f"{text!r} in the trigger {where!r} is not a number of pixels.",
            f"Write one of: {', '.join(CLASSIFIER_TRIGGER_KINDS)}.",
        )
    return int(text)


def _number(text: str, where: str, least: float, most: float, *, above: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or (above and value == least):
        raise GenwardenError(
            "trigger/number",
            f"{text!r} in the trigger {where!r} is not a number "
            f"{'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} "
            f"{most:g}.",
            "Images lie in [-1, 1].",
        )
    return value
