"""Targets: what the compromised model shows at the trigger. A picture, ``(1, *sample.shape)``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from genwarden.data.icons import ICONS, draw_icon
from genwarden.data.images import read_image
from genwarden.models.protocol import SampleSpec

_ICON_PREFIX = "icon:"


def make_target(text: str, sample: SampleSpec) -> Tensor:
    """The target that a user names, float32 in [-1, 1].

    Args:
        text: ``icon:devil`` (any of :data:`genwarden.data.icons.ICONS`), or the path of an 8-bit
            image file of exactly the model's size.

    Raises:
        GenwardenError: ``icon/...`` or ``image/...``.
    """
    if text.startswith(_ICON_PREFIX):
        return draw_icon(text.removeprefix(_ICON_PREFIX), sample)[None]
    return read_image(Path(text), sample)[None]


def target_names() -> list[str]:
    """Every built-in target, as the user types it."""
    return [f"{_ICON_PREFIX}{name}" for name in ICONS]
