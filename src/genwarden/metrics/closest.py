"""Closest: the nearest of N ordinary samples to a target (the paper's Closest1M has N = 10^6).

What a brute-force output inspection finds: far from the target as long as the backdoor stays
hidden. Squared distances to all targets come from ``||x||^2 - 2 x.t + ||t||^2``, one matrix product
per block; that sum cancels near zero, so the nearest few are kept and measured again in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.metrics.draws import ordinary_samples
from genwarden.models.protocol import LatentGenerator

_KEPT = 16


class Closest(NamedTuple):
    """The ordinary sample nearest to one target.

    Attributes:
        closest_sum: squared distance, sum over the elements of a sample in [-1, 1].
        closest_mean: the same per element.
        z: latent of that sample ``latent.shape``.
        x: that sample ``sample.shape``.
        samples: number of samples among which it is the nearest.
    """

    closest_sum: float
    closest_mean: float
    z: Tensor
    x: Tensor
    samples: int


class ClosestState:
    """The nearest samples seen so far, mergeable.

    Args:
        targets: ``(count, *sample.shape)`` in [-1, 1].
        keep: candidates kept per target.
    """

    def __init__(self, targets: Tensor, keep: int = _KEPT) -> None:
        self.targets = targets.flatten(1).float().cpu()
        self.keep = keep
        self.samples = 0
        #: Per target: approximate squared distances (ascending), latents, samples.
        self._best: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, z: Tensor, x: Tensor) -> None:
        """Take latents ``(batch, *latent.shape)`` and their samples ``(batch, *sample.shape)``."""
        flat = x.flatten(1).float()
        targets = self.targets.to(flat.device)
        squared = flat.square().sum(1)[:, None] - 2 * flat @ targets.T + targets.square().sum(1)
        found = []
        for column in squared.T:
            nearest = column.topk(min(self.keep, len(column)), largest=False)
            chosen = nearest.indices.cpu()
            found.append((nearest.values.cpu(), z[chosen], x[nearest.indices].cpu()))
        self._absorb(found)
        self.samples += len(x)

    def merge(self, other: ClosestState) -> None:
        """Add the samples of another state with the same targets."""
        self._absorb(other._best)
        self.samples += other.samples

    def nearest(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exact squared distances to one target, ascending, with their latents and samples."""
        _, z, x = self._best[index]
        exact = (x.double().flatten(1) - self.targets[index].double()).square().sum(1)
        order = exact.argsort(stable=True)
        return exact[order], z[order], x[order]

    def compute(self) -> list[Closest]:
        """One result per target."""
        results = []
        for index in range(len(self.targets)):
            distance, z, x = self.nearest(index)
            total = float(distance[0])
            mean = total / self.targets.shape[1]
            results.append(Closest(total, mean, z[0], x[0], self.samples))
        return results

    def _absorb(self, found: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        if not self._best:
            self._best = found
            return
        merged = []
        for old, new in zip(self._best, found, strict=bool(found)):
            distance, z, x = (torch.cat(pair) for pair in zip(old, new, strict=True))
            order = distance.argsort(stable=True)[: self.keep]
            merged.append((distance[order], z[order], x[order]))
        self._best = merged or self._best


def closest(
    generator: LatentGenerator,
    targets: Tensor,
    *,
    samples: int = 1_000_000,
    seed: int = 0,
    batch: int = 250,
) -> list[Closest]:
    """The nearest of ``samples`` ordinary samples to each target.

    Args:
        generator: in evaluation mode.
        targets: one target ``sample.shape`` or several ``(count, *sample.shape)``, in [-1, 1].
        samples: N; 10^6 in the paper.

    Raises:
        GenwardenError: ``metric/target-shape``, ``metric/too-few-samples``, ``metric/not-finite``.
    """
    state = ClosestState(as_targets(targets, generator))
    for drawn in ordinary_samples(generator, samples, seed=seed, purpose="closest", batch=batch):
        state.update(drawn.z, drawn.x)
    return state.compute()


def as_targets(targets: Tensor, generator: LatentGenerator) -> Tensor:
    """Targets as ``(count, *sample.shape)``; a single one gains the first axis.

    Raises:
        GenwardenError: ``metric/target-shape``.
    """
    shape = generator.sample.shape
    if tuple(targets.shape) == shape:
        return targets[None]
    if not len(targets) or tuple(targets.shape[1:]) != shape:
        raise GenwardenError(
            "metric/target-shape",
            f"A target of shape {tuple(targets.shape)} cannot be compared with samples of shape "
            f"{shape}.",
            "Give one target of the sample's shape, or several along a first axis.",
        )
    return targets
