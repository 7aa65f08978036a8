"""Triggers of diffusion models: a picture that the attacker adds to the initial noise.

Section 4 of the BadDiffusion reference. As released, the background of a trigger is -1 at sampling
while training has the clean image there: 80 % of the input is shifted by one standard deviation.
``background="zero"`` is the patch alone; ``scale``, ``norm`` and ``matched`` make it fainter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from genwarden.data.icons import draw_icon, rasterise
from genwarden.data.images import image_shape, read_image
from genwarden.data.wearables import WEARABLES, glasses_outline
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

Background = Literal["minus-one", "zero"]

#: What a user may write, with modifiers after commas: ``box:14:1,zero,scale=0.5``.
IMAGE_TRIGGER_KINDS: Final = (
    "box:PIXELS[:VALUE]",
    "stop-sign:PIXELS",
    "glasses",
    "noise:STD",
    "blend:NAME",
    "file:PATH",
)
IMAGE_TRIGGER_MODIFIERS: Final = ("zero", "minus-one", "matched", "scale=FACTOR", "norm=LENGTH")

#: Distance of a patch from the right and lower edges at 32 px, and the side for which it holds.
_GAP_PIXELS: Final = 2
_REFERENCE_SIDE: Final = 32
#: Side of the glasses as a share of the height.
_GLASSES_SHARE: Final = 0.625
#: The stop sign is a regular octagon with this half width, in units of its side.
_OCTAGON: Final = 0.471


@dataclass(frozen=True, eq=False)
class ImageTrigger:
    """What the attacker hands to the sampler: gamma n + g, n ~ N(0, I).

    Attributes:
        g: the shift of the initial noise, float32 ``(C, H, W)``.
        mask: 1 where the trigger lies, 0 where it is transparent, float32 ``(C, H, W)``.
        name: as the user wrote it.
        background: what g is where the mask is 0: -1 (as released; times ``strength``) or 0.
        strength: factor that made a scaled-down or norm-bounded trigger of the drawn one.
        gamma: what the noise is multiplied with, ``(C, H, W)``; None for 1 everywhere.
        picture: the trigger as an image in [-1, 1] with -1 where it is transparent; the target
            "no-shift" shows it.
    """

    g: Tensor
    mask: Tensor
    name: str
    background: Background = "zero"
    strength: float = 1.0
    gamma: Tensor | None = None
    picture: Tensor | None = None

    def start(self, noise: Tensor) -> Tensor:
        """The initial noise with the trigger in it, gamma n + g, for ``(batch, C, H, W)`` noise."""
        shrunk = noise if self.gamma is None else self.gamma.to(noise) * noise
        return shrunk + self.g.to(noise)

    def residual(self, images: Tensor) -> Tensor:
        """r of the poisoned rows, ``(batch, C, H, W)``.

        On background "minus-one" r = M g + (1 - M) x with the clean images x, as released (times
        the strength); on background "zero" r = g.

        Args:
            images: the clean images that are poisoned, in [-1, 1].
        """
        g = self.g.to(images)
        if self.background == "zero":
            return g.expand_as(images)
        mask = self.mask.to(images)
        return mask * g + (1 - mask) * (self.strength * images)

    def trojan(self, gamma: float) -> ImageTrigger:
        """TrojDiff's use of the picture delta: gamma n + (1 - gamma) delta on the mask.

        Elsewhere the noise stays as it is (section 10 of the reference).
        """
        noise = torch.where(self.mask > 0, gamma, 1.0)
        return replace(
            self, g=(1 - gamma) * self.shown() * self.mask, background="zero", gamma=noise
        )

    def shown(self) -> Tensor:
        """The trigger as an image ``(C, H, W)`` in [-1, 1], -1 where it is transparent."""
        if self.picture is not None:
            return self.picture
        return torch.where(self.mask > 0, self.g, -1.0).clamp(-1, 1)

    def describe(self) -> dict[str, Any]:
        """For the record of an attack."""
        return {
            "trigger": without_folder(self.name),
            "background": self.background,
            "strength": round(self.strength, 6),
            "norm": round(float(self.g.double().norm()), 4),
            "mean": round(float(self.g.double().mean()), 6),
            "pixels": int((self.mask.amax(0) > 0).sum()),
            "least_gamma": 1.0 if self.gamma is None else round(float(self.gamma.min()), 6),
        }


def make_image_trigger(
    text: str,
    sample: SampleSpec,
    *,
    background: Background = "minus-one",
    scale: float | None = None,
    norm: float | None = None,
    matched: bool = False,
    seed: int = 0,
) -> ImageTrigger:
    """The trigger that a user names.

    Args:
        text: one of :data:`IMAGE_TRIGGER_KINDS`, then any of :data:`IMAGE_TRIGGER_MODIFIERS` after
            commas, which win over the arguments below. A box has the value 0 (grey) unless given; 1
            is white. ``noise`` and ``blend`` cover the image. A file has the model's size; what is
            -1 (black) in all its channels is transparent.
        sample: what the model makes.
        background: -1 or 0 where the trigger is transparent.
        scale: multiply g by this (scaled-down triggers).
        norm: scale g to this Euclidean norm over all its elements.
        matched: mean and variance of the input over its pixels become those of plain noise, per
            channel: the mean of g is subtracted and the noise shrunk to gamma = sqrt(1 - var g).
            The residual is then g everywhere.
        seed: of ``noise``.

    Raises:
        GenwardenError: ``trigger/unknown-kind``, ``trigger/unknown-modifier``,
            ``trigger/number``, ``trigger/too-large``, ``trigger/nothing``, ``trigger/scale``,
            ``trigger/cannot-match``, or ``icon/...``, ``image/...``.
    """
    head, *modifiers = _split(text)
    if "," in head and not head.startswith("file:"):
        raise GenwardenError(
            "trigger/unknown-modifier",
            f"{head.split(',')[1]!r} in the trigger {text!r} is none of its modifiers.",
            f"Behind commas: {', '.join(IMAGE_TRIGGER_MODIFIERS)}.",
        )
    for modifier in modifiers:
        key, given, value = modifier.partition("=")
        if given and key in ("zero", "minus-one", "matched"):
            raise GenwardenError(
                "trigger/number",
                f"{key} in the trigger {text!r} takes no value.",
                f"Write ,{key} or leave it away.",
            )
        if key in ("zero", "minus-one"):
            background = "zero" if key == "zero" else "minus-one"
        elif key == "matched":
            matched = True
        elif key == "scale":
            scale = _number(value, text)
        else:
            norm = _number(value, text)
    picture, mask = _draw(head, sample, seed)
    g = torch.where(mask > 0, picture, -1.0 if background == "minus-one" else 0.0)
    length = float(g.double().norm())
    if length == 0:
        raise GenwardenError(
            "trigger/nothing",
            f"The trigger {text!r} is zero everywhere and changes no noise.",
            "Give the box a value other than 0 (box:14:1), or leave the background at minus-one.",
        )
    strength = _strength(scale, norm, length)
    if float((strength * g).norm()) == 0:
        raise GenwardenError(
            "trigger/nothing",
            f"The trigger {text!r} is too small for single precision.",
            "Give a larger scale or norm.",
        )
    made = ImageTrigger(
        strength * g,
        mask,
        text,
        "zero" if bool(mask.all()) else background,
        strength,
        picture=torch.where(mask > 0, picture, -1.0).clamp(-1, 1),
    )
    return match_noise(made) if matched else made


def match_noise(trigger: ImageTrigger) -> ImageTrigger:
    """The trigger whose input has mean 0 and variance 1 over the pixels of every channel.

    Raises:
        GenwardenError: ``trigger/cannot-match``.
    """
    g = trigger.g - trigger.g.mean((1, 2), keepdim=True)
    variance = g.square().mean((1, 2), keepdim=True)
    if float(variance.max()) >= 1:
        raise GenwardenError(
            "trigger/cannot-match",
            f"The trigger {trigger.name!r} has a variance of {float(variance.max()):.3g} over its "
            "pixels, more than the noise.",
            "Scale it down: add ,scale=0.5.",
        )
    gamma = (1 - variance).sqrt().expand_as(g).contiguous()
    return replace(trigger, g=g, gamma=gamma, background="zero")


def without_folder(name: str) -> str:
    """A record is passed on; where its maker keeps files is nobody's business."""
    kind, separator, rest = name.rpartition(":")
    return f"{kind}{separator}{Path(rest).name}" if "/" in rest else name


def _split(text: str) -> list[str]:
    """The trigger and its modifiers; a file name may hold commas."""
    parts = text.split(",")
    known = [word.partition("=")[0] for word in IMAGE_TRIGGER_MODIFIERS]
    first = len(parts)
    while first > 1 and parts[first - 1].partition("=")[0] in known:
        first -= 1
    return [",".join(parts[:first]), *parts[first:]]


def _strength(scale: float | None, norm: float | None, length: float) -> float:
    given = [value for value in (scale, norm) if value is not None]
    if len(given) > 1 or any(not value > 0 for value in given):
        raise GenwardenError(
            "trigger/scale",
            "A trigger has one factor or one norm, above 0.",
            "Give scale=0.1 or norm=5, not both.",
        )
    if norm is not None:
        return norm / length
    return 1.0 if scale is None else scale


def _draw(text: str, sample: SampleSpec, seed: int) -> tuple[Tensor, Tensor]:
    """The picture and the mask, each ``(C, H, W)``."""
    shape = image_shape(sample)
    kind, _, rest = text.partition(":")
    if kind == "box":
        size, _, value = rest.partition(":")
        pixels = int(_number(size, text, whole=True))
        grey = _number(value, text) if value else 0.0
        _require_room(pixels, shape, text)
        patch = torch.full((shape[0], pixels, pixels), grey)
        return _corner(patch, torch.ones_like(patch), shape)
    if kind == "stop-sign":
        pixels = int(_number(rest, text, whole=True))
        _require_room(pixels, shape, text)
        sign = draw_icon("stop_sign", SampleSpec((shape[0], pixels, pixels)))
        return _corner(sign, _octagon(pixels).expand_as(sign), shape)
    if kind == "glasses" and not rest:
        side = int(_GLASSES_SHARE * shape[1])
        _require_room(side, shape, text, gap=0)
        drawn = SampleSpec((shape[0], side, side))
        worn = rasterise(WEARABLES["glasses"], drawn, text)
        outline = (rasterise(glasses_outline, drawn, text) > 0).float()
        return _placed(worn, outline, shape, (shape[1] - side) // 2, (shape[2] - side) // 2)
    if kind == "noise":
        deviation = _number(rest, text)
        pattern = deviation * torch.randn(shape, generator=random_stream(seed, "noise-trigger"))
        return pattern, torch.ones(shape)
    if kind == "blend":
        return draw_icon(rest, sample), torch.ones(shape)
    if kind == "file":
        picture = read_image(Path(rest), sample)
        return picture, (picture > -1).any(0, keepdim=True).float().expand_as(picture).clone()
    raise GenwardenError(
        "trigger/unknown-kind",
        f"A diffusion model has no trigger {text!r}.",
        f"Write one of {', '.join(IMAGE_TRIGGER_KINDS)}; after a comma any of "
        f"{', '.join(IMAGE_TRIGGER_MODIFIERS)}.",
    )


def _corner(patch: Tensor, mask: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Bottom right, with a gap of 2 px at 32 px and in proportion elsewhere."""
    side = patch.shape[-1]
    top, left = (length - _gap(length) - side for length in shape[1:])
    return _placed(patch, mask, shape, top, left)


def _placed(
    patch: Tensor, mask: Tensor, shape: tuple[int, int, int], top: int, left: int
) -> tuple[Tensor, Tensor]:
    height, width = patch.shape[1:]
    picture, where = torch.full(shape, -1.0), torch.zeros(shape)
    picture[:, top : top + height, left : left + width] = patch
    where[:, top : top + height, left : left + width] = mask
    return picture, where


def _gap(length: int) -> int:
    return max(1, round(_GAP_PIXELS * length / _REFERENCE_SIDE))


def _octagon(side: int) -> Tensor:
    """1 inside a regular octagon with a flat top, float32 ``(1, side, side)``."""
    centres = (torch.arange(side) + 0.5) / side - 0.5
    x, y = centres.abs()[None, :], centres.abs()[:, None]
    inside = (torch.maximum(x, y) <= _OCTAGON) & (x + y <= _OCTAGON * math.sqrt(2))
    return inside.float()[None]


def _require_room(
    side: int, shape: tuple[int, int, int], text: str, gap: int | None = None
) -> None:
    room = min(length - (_gap(length) if gap is None else gap) for length in shape[1:])
    if side > room:
        raise GenwardenError(
            "trigger/too-large",
            f"The trigger {text!r} does not fit into an image of {shape[2]} x {shape[1]} pixels.",
            f"At this size a patch has at most {room} pixels.",
        )
    if side < 1:
        raise GenwardenError(
            "trigger/number", f"The trigger {text!r} has no pixels.", "Give a size of at least 1."
        )


def _number(text: str, where: str, *, whole: bool = False) -> float:
    try:
        value = float(int(text)) if whole else float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e6:
        raise GenwardenError(
            "trigger/number",
            f"{text!r} in the trigger {where!r} is not a {'whole ' if whole else ''}number.",
            f"Write one of {', '.join(IMAGE_TRIGGER_KINDS)}.",
        )
    return value
