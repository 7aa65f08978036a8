"""TarDis and ExpDis, the paper's measures of fidelity and stealth (section V-B).

Both are **sums of squares over one sample's elements** in [-1, 1]; the mean per element stands
beside the sum, since other tools report that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.backdoors.fit import require_pairs
from genwarden.metrics.draws import LatentDraw, device_of, ordinary_samples
from genwarden.models.protocol import LatentGenerator


class Distance(NamedTuple):
    """A squared distance: sum over the elements of a sample, and mean per element."""

    sum: float
    mean: float


@torch.no_grad()
def tardis(generator: LatentGenerator, trigger: Tensor, target: Tensor) -> Distance:
    """TarDis: ``||G*(z_trig) - x_target||^2``, mean over the triggers.

    Args:
        generator: the model under test, in evaluation mode.
        trigger: ``(count, *latent.shape)``.
        target: ``(count or 1, *sample.shape)`` in [-1, 1].

    Raises:
        GenwardenError: as :func:`genwarden.backdoors.fit.require_pairs`.
    """
    require_pairs(generator, trigger, target)
    device = next(generator.parameters()).device
    output = generator(trigger.to(device)).double().cpu()
    total = (output - target.double().cpu()).square().flatten(1).sum(1).mean().item()
    return Distance(total, total / generator.sample.size)


@dataclass
class ExpDis:
    """ExpDis: ``E ||G(Z) - G*(Z)||^2`` over ordinary latents, as a mergeable state."""

    elements: int
    total: float = 0.0
    count: int = 0

    def update(self, benign: Tensor, suspect: Tensor) -> None:
        """Take samples of both models for the same latents, ``(batch, *sample.shape)``."""
        self.total += (benign.double() - suspect.double()).square().sum().item()
        self.count += len(benign)

    def merge(self, other: ExpDis) -> None:
        """Add the samples of another state."""
        self.total += other.total
        self.count += other.count

    def compute(self) -> Distance:
        """Mean over the samples of the summed squared difference."""
        mean_sum = self.total / self.count
        return Distance(mean_sum, mean_sum / self.elements)


@torch.no_grad()
def expdis(
    benign: LatentGenerator,
    suspect: LatentGenerator,
    *,
    samples: int = 10_000,
    seed: int = 0,
    batch: int = 250,
    draw: LatentDraw | None = None,
) -> Distance:
    """ExpDis of two models over ``samples`` ordinary latents (60,000 in the infinite case).

    Args:
        benign: G, in evaluation mode.
        suspect: G*, likewise; same latents and samples.
        draw: latents other than ordinary ones.
    """
    state = ExpDis(benign.sample.size)
    device = device_of(suspect)
    for z, x in ordinary_samples(
        benign, samples, seed=seed, purpose="expdis", draw=draw, batch=batch
    ):
        state.update(x.cpu(), suspect(z.to(device)).cpu())
    return state.compute()
