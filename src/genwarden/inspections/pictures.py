"""Samples as evidence, where they can be shown at all."""

from __future__ import annotations

from torch import Tensor

from genwarden.inspections.finding import Images, images_of
from genwarden.models.protocol import SampleSpec


def sample_pictures(
    sample: SampleSpec, x: Tensor, labels: list[str], *, title: str, caption: str = ""
) -> list[Images]:
    """Samples ``(count, *sample.shape)`` as one row of pictures; nothing for audio and the like."""
    drawable = sample.modality == "image" and len(sample.shape) == 3 and sample.shape[0] in (1, 3)
    return [images_of(x, labels, title=title, caption=caption)] if drawable and len(x) else []
