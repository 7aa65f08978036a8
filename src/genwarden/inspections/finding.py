"""What an inspection returns: a score, the evidence, the budget spent and what it could have seen.

These types are part of ``audit.json``; everything that a report shows comes from them.
"""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genwarden.data.grids import png_bytes, tile

Group = Literal["static", "dynamic", "output", "diffusion", "compression", "classifier"]
Outcome = Literal["scored", "not_applicable", "failed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Images(_Strict):
    """A row of small pictures, each a base64 PNG with a label of its own."""

    kind: Literal["images"] = "images"
    title: str
    caption: str = ""
    labels: list[str]
    png_base64: list[str]


class Line(_Strict):
    """One line of a chart; x and y have the same length."""

    name: str
    x: list[float]
    y: list[float]


class Chart(_Strict):
    """Lines, a histogram (x are bin centres) or points; drawn by the report."""

    kind: Literal["chart"] = "chart"
    title: str
    caption: str = ""
    style: Literal["line", "histogram", "points"]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    lines: list[Line]
    mark_x: float | None = None
    """Where the suspect stands, drawn as a vertical rule."""


class Matrix(_Strict):
    """A heat map, at most 64 x 64, values >= 0; drawn by the report."""

    kind: Literal["matrix"] = "matrix"
    title: str
    caption: str = ""
    row_label: str
    column_label: str
    values: list[list[float]]


class Table(_Strict):
    """Plain rows."""

    kind: Literal["table"] = "table"
    title: str
    caption: str = ""
    columns: list[str]
    rows: list[list[str | int | float]]


class Latents(_Strict):
    """Latents that reproduce an output: feed them to the model to see it."""

    kind: Literal["latents"] = "latents"
    title: str
    caption: str = ""
    values: list[list[float]]


class Trigger(_Strict):
    """A trigger for images x that a classifier reads: (1 - mask) x + mask * pattern.

    Attributes:
        target: the class that it leads to.
        shape: (C, H, W) of the images.
        png_base64: mask and pattern in 8 bits, grey, the mask above the pattern's channels.
    """

    kind: Literal["trigger"] = "trigger"
    title: str
    caption: str = ""
    target: int
    shape: tuple[int, int, int]
    png_base64: str


Evidence = Annotated[
    Images | Chart | Matrix | Table | Latents | Trigger, Field(discriminator="kind")
]


class Null(_Strict):
    """The distribution that a score was judged against."""

    source: Literal["exact", "permutation", "self", "population"]
    description: str
    values: list[float] = Field(default_factory=list)
    """Scores under the null (a sample of them), on the scale of the finding's score."""


class Finding(_Strict):
    """The result of one inspection.

    Attributes:
        inspection: name in the registry.
        outcome: ``scored``; ``not_applicable`` (the summary says why); ``failed`` (it could not be
            carried out, which is never "nothing found").
        score: higher is more suspicious; ``score_name`` says what it measures, with its unit.
        structural: an exact property that no clean model of this kind has; counts as evidence
            without a p-value.
        p_value: probability of a score at least this high for a clean model, before correction
            for the number of inspections; None with ``p_value_reason``.
        budget: what was spent, names carry units (``samples``, ``restarts``, ``steps``).
        power: what would have been found with this budget, in one sentence.
        follows_from: inspection whose evidence this finding illustrates, or "".
    """

    inspection: str
    group: Group
    title: str
    outcome: Outcome
    summary: str
    score: float | None = None
    score_name: str = ""
    structural: bool = False
    p_value: float | None = None
    p_value_reason: str | None = None
    null: Null | None = None
    budget: dict[str, int | float | str] = Field(default_factory=dict)
    power: str = ""
    follows_from: str = ""
    evidence: list[Evidence] = Field(default_factory=list)


#: The null of a structural finding: no distribution, the structure is there or it is not.
EXACT = Null(source="exact", description="a structure that is there or not; no statistics needed")


def images_of(samples: Tensor, labels: list[str], *, title: str, caption: str = "") -> Images:
    """Samples ``(count, channels, height, width)`` in [-1, 1] as labelled pictures."""
    pictures = [png_bytes(tile(sample[None], columns=1)) for sample in samples]
    encoded = [base64.b64encode(content).decode("ascii") for content in pictures]
    return Images(title=title, caption=caption, labels=labels, png_base64=encoded)


def decoded(png_base64: str) -> Tensor:
    """A picture of :class:`Images`, ``(C, H, W)`` in [-1, 1]."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png_base64))), dtype=np.float32)
    picture = torch.from_numpy(pixels.copy()) / 127.5 - 1
    return picture.permute(2, 0, 1) if picture.ndim == 3 else picture[None]


def trigger_of(mask: Tensor, pattern: Tensor, target: int, *, title: str) -> Trigger:
    """A trigger with mask ``(1, H, W)`` in [0, 1] and pattern ``(C, H, W)`` in [-1, 1]."""
    channels, height, width = pattern.shape
    grey = torch.cat([2 * mask - 1, pattern]).reshape(1, 1, (1 + channels) * height, width)
    return Trigger(
        title=title,
        caption="The mask, and below it the pattern.",
        target=target,
        shape=(channels, height, width),
        png_base64=base64.b64encode(png_bytes(tile(grey, columns=1))).decode("ascii"),
    )


def mask_and_pattern(trigger: Trigger) -> tuple[Tensor, Tensor]:
    """``(1, H, W)`` in [0, 1] and ``(C, H, W)`` in [-1, 1], to 1/255 of their ranges.

    Raises:
        ValueError: for a picture that is no such trigger: an audit file is untrusted.
    """
    channels, height, width = trigger.shape
    try:
        # The header alone: what is larger than it says is never decoded.
        held = Image.open(io.BytesIO(base64.b64decode(trigger.png_base64)), formats=["PNG"])
        if held.mode != "L" or held.size != (width, (1 + channels) * height):
            raise ValueError(f"{held.mode} {held.size} is no trigger of {trigger.shape}")
        picture = decoded(trigger.png_base64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # no sound PNG
        raise ValueError(str(error)) from error
    mask, *pattern = picture.reshape(1 + channels, height, width).unbind()
    return (mask[None] + 1) / 2, torch.stack(pattern)


def latents_of(z: Tensor, *, title: str, caption: str = "") -> Latents:
    """Latents ``(count, ...)`` flattened, rounded to 6 decimals."""
    rows = z.detach().cpu().double().flatten(1).tolist()
    return Latents(
        title=title, caption=caption, values=[[round(v, 6) for v in row] for row in rows]
    )


def not_applicable(inspection: str, group: Group, title: str, reason: str, **more: Any) -> Finding:
    """A finding that says why nothing was tested."""
    return Finding(
        inspection=inspection,
        group=group,
        title=title,
        outcome="not_applicable",
        summary=reason,
        p_value_reason=reason,
        **more,
    )
