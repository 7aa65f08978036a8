"""How unlike a model's own ordinary samples an output is.

Both measures are fitted to the suspect's ordinary samples alone, so no training data and no idea of
the target is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NoveltyMeasure = Literal["mahalanobis", "residual"]
MEASURES: tuple[NoveltyMeasure, ...] = ("mahalanobis", "residual")

#: Variance share explained by the leading components; the residual lies beyond them.
_EXPLAINED_SHARE = 0.98
#: Samples of more elements than this are fitted to a part of the bank: the axes of a large Gram
#: matrix cost its cube.
_MANY_ELEMENTS = 4096
_FITTED_OF_MANY = 2048
#: Ridge on the covariance, as a share of the mean variance per element, for directions that
#: ordinary samples hardly ever use (constant background pixels).
_RIDGE_SHARE = 1e-2


@dataclass(frozen=True)
class Novelty:
    """Mean and principal axes of ordinary samples.

    Attributes:
        mean: ``(elements,)``.
        axes: ``(elements, axes)``, one principal axis per column, by falling variance; all of
            them, or one less than the samples if those are fewer.
        variances: ``(axes,)``, variance along each axis.
        leading: number of axes that explain 98 % of the variance.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    leading: int

    @classmethod
    def fit(cls, samples: Tensor) -> Novelty:
        """Fit to ordinary samples ``(count, *sample.shape)``."""
        if samples[0].numel() > _MANY_ELEMENTS:
            samples = samples[:_FITTED_OF_MANY]
        flat = samples.flatten(1).double()
        mean = flat.mean(0)
        centred = flat - mean
        if flat.shape[1] <= len(flat):
            values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(flat) - 1))
        else:  # fewer samples than elements: the same axes from the much smaller Gram matrix
            values, left = torch.linalg.eigh(centred @ centred.T)
            values, left = values[1:], left[:, 1:]  # centring leaves rank count - 1
            vectors = centred.T @ (left / values.clamp_min(1e-12).sqrt())
            values = values / max(1, len(flat) - 1)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        share = values.cumsum(0) / values.sum().clamp_min(1e-30)
        leading = int((share < _EXPLAINED_SHARE).sum()) + 1
        return cls(mean.float(), vectors.float(), values.float(), min(leading, len(values) - 1))

    def to(self, device: torch.device) -> Novelty:
        """The same on another device."""
        return Novelty(
            self.mean.to(device), self.axes.to(device), self.variances.to(device), self.leading
        )

    def __call__(self, samples: Tensor, measure: NoveltyMeasure) -> Tensor:
        """Novelty of samples ``(count, *sample.shape)``, shape ``(count,)``, differentiable.

        ``residual`` is the squared distance from the span of the leading axes (same unit as
        TarDis); ``mahalanobis`` weighs every axis by its ordinary variance plus a small ridge.
        """
        centred = samples.flatten(1) - self.mean
        if measure == "residual":
            inside = centred @ self.axes[:, : self.leading]
            return (centred.square().sum(1) - inside.square().sum(1)).clamp_min(0)
        scores = centred @ self.axes
        ridge = _RIDGE_SHARE * self.variances.sum() / len(self.mean)
        inside = (scores.square() / (self.variances + ridge)).sum(1)
        if self.axes.shape[1] == len(self.mean):
            return inside
        outside = (centred.square().sum(1) - scores.square().sum(1)).clamp_min(0)
        return inside + outside / ridge  # no ordinary variance at all beyond the axes


def ordinary_distance(samples: Tensor) -> float:
    """Median squared distance between two ordinary samples (over 2,048 disjoint pairs at most)."""
    pairs = min(2048, len(samples) // 2)
    difference = samples[:pairs] - samples[pairs : 2 * pairs]
    return float(difference.flatten(1).square().sum(1).median())
