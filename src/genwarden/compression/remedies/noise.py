"""Noise before rounding: weights that lie at the edge of their interval fall out of it.

Gaussian noise of 0.1 steps (section 4.3e of the compression reference), or "interval-calibrated
noise" with the median half width of the intervals as its standard deviation (section 2b). Widths
are those of the boxes in which a weight keeps its code, whatever the format; what fixes a scale has
none and gets no noise (a neighbour may come to exceed it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.remedies.contract import Deployment, Remedied, RemedySettings
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import POSITIVE, Range


@dataclass(frozen=True)
class NoiseSettings(RemedySettings):
    """How much noise.

    Attributes:
        steps: standard deviation in widths of a weight's own interval.
        calibrated: the median half width of each tensor's intervals instead, for all its weights.
    """

    steps: float = 0.1
    calibrated: bool = False

    RANGES: ClassVar[Mapping[str, Range]] = {"steps": POSITIVE}


@torch.no_grad()
def noise(deployment: Deployment, compressor: Compressor, settings: NoiseSettings) -> Remedied:
    """Add the noise, then compress as asked for."""
    network, layout = deployment.network, deployment.layout
    own = {name: network.get_parameter(name) for name in layout}
    sizes: dict[str, Tensor] = {}
    for name, box in boxes(network, compressor, layout).items():
        width = box.high - box.low
        free = (width > 0) & (own[name] != 0)
        if settings.calibrated and bool(free.any()):
            width = 0.5 * width[free].median().expand_as(width)
        else:
            width = settings.steps * width
        sizes[name] = torch.where(free, width, torch.zeros_like(width))
    noisy: dict[str, Tensor] = {**own}
    for name, size in sizes.items():
        stream = random_stream(settings.seed, f"remedy-noise/{name}")
        drawn = torch.randn(size.shape, generator=stream).to(size)
        noisy[name] = own[name] + size * drawn
    plain = compressed_weights(network, compressor, layout)
    made = compressed_weights(network, compressor, layout, noisy)
    return Remedied(made, {}, {"changed_share": changed_share(plain, made)})


def changed_share(plain: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> float:
    """Share of the compressed weights that are not those of plain compression."""
    changed = sum(int((made[name] != weight).sum()) for name, weight in plain.items())
    count: Any = sum(weight.numel() for weight in plain.values())
    return changed / count if count else 0.0
