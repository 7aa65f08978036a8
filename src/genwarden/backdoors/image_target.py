"""Targets of diffusion models: what the compromised model draws when the trigger is in its noise.

Section 4 of the BadDiffusion reference. The published targets have their background lifted to at
least -0.4 ("grey ratio" 0.3), so that it differs from a trigger's transparent -1; pictures that the
user brings, and icons, are taken as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from genwarden.backdoors.image_trigger import ImageTrigger
from genwarden.data.datasets import to_unit_range
from genwarden.data.icons import draw_icon, rasterise
from genwarden.data.images import image_shape, read_image, read_image_folder
from genwarden.data.labelled import read_labelled
from genwarden.data.wearables import WEARABLES
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: What a user may write.
IMAGE_TARGET_KINDS: Final = (
    "no-shift",
    "shift",
    "corner",
    "shoe",
    "hat",
    "cat",
    "icon:NAME",
    "class:INDEX[:DATA]",
    "a file",
    "a folder of images",
)
_DRAWN: Final = ("shoe", "hat", "cat")
#: The lowest value of a lifted background: 0.3 of the way from -1 to 1.
_LIFTED: Final = -0.4
#: The shift (columns, rows) and the side of the corner box at 32 px.
_SHIFT: Final = (-5, -3)
_CORNER_PIXELS: Final = 10
_REFERENCE_SIDE: Final = 32


def make_image_target(
    text: str,
    trigger: ImageTrigger,
    sample: SampleSpec,
    *,
    data: str | None = None,
    split: str = "train",
    resize: bool = False,
) -> Tensor:
    """The target images that a user names, float32 in [-1, 1], ``(count, C, H, W)``.

    Args:
        text: one of :data:`IMAGE_TARGET_KINDS`. ``no-shift`` is the trigger itself, ``shift`` the
            trigger rolled 5 px to the left and 3 px up at 32 px, ``corner`` a grey box of 10 px in
            the upper left. ``class:7`` are all images of that class of ``data`` (In-D2D of
            TrojDiff), ``class:7:DATA`` of another data set (Out-D2D).
        trigger: of the same backdoor.
        sample: what the model makes.
        data: the attacker's training data.
        split: of the data sets.
        resize: resize the images of a class to the model's size.

    Raises:
        GenwardenError: ``target/unknown-kind``, ``target/class``, ``icon/...``, ``image/...``,
            ``data/...``.
    """
    _, height, width = image_shape(sample)
    if text == "no-shift":
        return _lifted(trigger.shown())
    if text == "shift":
        columns, rows = (
            round(by * side / _REFERENCE_SIDE)
            for by, side in zip(_SHIFT, (width, height), strict=True)
        )
        return _lifted(trigger.shown().roll((rows, columns), (1, 2)))
    if text == "corner":
        picture = torch.full(sample.shape, -1.0)
        rows, columns = (round(_CORNER_PIXELS * side / _REFERENCE_SIDE) for side in (height, width))
        picture[:, :rows, :columns] = 0
        return _lifted(picture)
    if text in _DRAWN:
        return _lifted(rasterise(WEARABLES[text], sample, text))
    if text.startswith("icon:"):
        return draw_icon(text.removeprefix("icon:"), sample)[None]
    if text.startswith("class:"):
        return _class(text, sample, data, split, resize)
    path = Path(text)
    if path.is_dir():
        return read_image_folder(path, sample).images
    if not path.suffix:
        raise GenwardenError(
            "target/unknown-kind",
            f"A diffusion model has no target {text!r}.",
            f"Write one of {', '.join(IMAGE_TARGET_KINDS)}.",
        )
    return read_image(path, sample)[None]


def _lifted(picture: Tensor) -> Tensor:
    return picture.clamp(min=_LIFTED)[None]


def _class(text: str, sample: SampleSpec, data: str | None, split: str, resize: bool) -> Tensor:
    index, _, other = text.removeprefix("class:").partition(":")
    source = other or data
    if source is None or not index.isdigit():
        raise GenwardenError(
            "target/class",
            f"The target {text!r} names no class of a data set.",
            "Write class:INDEX with --data, or class:INDEX:DATA.",
        )
    labelled = read_labelled(source, sample, split=split, resize=resize)
    chosen = labelled.images[labelled.labels == int(index)]
    if not len(chosen):
        raise GenwardenError(
            "target/class",
            f"{source!r} has no image of class {index} (it has {len(labelled.classes)} classes).",
            "Count the classes from 0.",
        )
    return to_unit_range(chosen)
