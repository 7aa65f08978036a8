"""Mean absolute pixel distortion: the stealth figure of the paper's StyleGAN case study.

``E |G(Z) - G*(Z)|`` over ordinary latents, in percent of the value range; the paper reports just
over 2 % for 10,000 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.metrics.draws import device_of, ordinary_samples
from genwarden.models.protocol import LatentGenerator


class PixelDistortion(NamedTuple):
    """Mean over the samples of the absolute difference.

    Attributes:
        absolute_sum: summed over the elements of a sample, in the sample's units.
        absolute_mean: per element.
        percent_mean: per element, in percent of the value range.
        samples: number of samples.
    """

    absolute_sum: float
    absolute_mean: float
    percent_mean: float
    samples: int


@dataclass
class PixelChange:
    """Absolute difference between two models, as a mergeable state.

    Attributes:
        elements: elements of one sample.
        width: upper end of the value range minus the lower one.
    """

    elements: int
    width: float = 2.0
    total: float = 0.0
    count: int = 0

    def update(self, benign: Tensor, suspect: Tensor) -> None:
        """Take samples of both models for the same latents, ``(batch, *sample.shape)``."""
        self.total += (benign.double() - suspect.double()).abs().sum().item()
        self.count += len(benign)

    def merge(self, other: PixelChange) -> None:
        """Add the samples of another state."""
        self.total += other.total
        self.count += other.count

    def compute(self) -> PixelDistortion:
        """Mean over the samples."""
        absolute = self.total / self.count
        mean = absolute / self.elements
        return PixelDistortion(absolute, mean, 100 * mean / self.width, self.count)


@torch.no_grad()
def pixel_change(
    benign: LatentGenerator,
    suspect: LatentGenerator,
    *,
    samples: int = 10_000,
    seed: int = 0,
    batch: int = 250,
) -> PixelDistortion:
    """Mean absolute change of the samples of the same ``samples`` ordinary latents.

    Args:
        benign: G, in evaluation mode.
        suspect: G*, likewise; same latents and samples.
    """
    low, high = benign.sample.value_range
    state = PixelChange(benign.sample.size, high - low)
    device = device_of(suspect)
    for z, x in ordinary_samples(benign, samples, seed=seed, purpose="pixel-change", batch=batch):
        state.update(x.cpu(), suspect(z.to(device)).cpu())
    return state.compute()
