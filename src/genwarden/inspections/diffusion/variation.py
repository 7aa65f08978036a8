"""Uniformity and total variation of generated samples (Elijah, AAAI 2024, section 11.1).

A backdoored model turns every triggered noise into about the same picture. Elijah measures that by
LPIPS, which needs downloaded weights; here the distance is the mean squared pixel difference in
[0, 1] scale, or that of any features that the caller gives (a network of
``genwarden.metrics.feature_network``, where its data set and size are those of the model).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Entries dropped at each end of every sorted row, and of the sorted row means (Elijah's code).
TRIMMED = 4


def to_unit(images: Tensor) -> Tensor:
    """Images from [-1, 1] to [0, 1], clamped."""
    return (images / 2 + 0.5).clamp(0, 1)


def pairwise_distances(
    images: Tensor, features: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Distance of every pair, ``(n, n)``, zero on the diagonal; float64.

    Args:
        images: ``(n, C, H, W)`` in [-1, 1].
        features: maps uint8 images in [0, 255] to ``(n, d)``; distances are then squared ones
            between features, divided by d. None: mean squared pixel differences in [0, 1] scale.
    """
    unit = to_unit(images)
    rows = unit if features is None else features((unit * 255).round().to(torch.uint8))
    flat = rows.flatten(1).double()
    return (flat[:, None] - flat[None]).square().mean(2)


def uniformity(distances: Tensor, trimmed: int = TRIMMED) -> float:
    """Trimmed mean of pairwise distances: small where all samples look alike.

    Of every sorted row the ``trimmed`` smallest (its own zero among them) and largest are dropped,
    the rest averaged; the row means are sorted, trimmed by the same number and averaged.

    Args:
        distances: ``(n, n)`` with n > 2 ``trimmed``.
        trimmed: entries dropped at each end.
    """
    kept = slice(trimmed, len(distances) - trimmed)
    rows = distances.sort(1).values[:, kept].mean(1)
    return float(rows.sort().values[kept].mean())


def total_variation(images: Tensor) -> float:
    """Mean over images ``(n, C, H, W)`` in [-1, 1] of the sum of absolute differences between
    neighbouring pixels, both axes and all channels, in [0, 1] scale."""
    unit = to_unit(images).double()
    vertical = (unit[..., 1:, :] - unit[..., :-1, :]).abs().flatten(1).sum(1)
    horizontal = (unit[..., :, 1:] - unit[..., :, :-1]).abs().flatten(1).sum(1)
    return float((vertical + horizontal).mean())


def repeated_pairs(distances: Tensor, typical: float, near: float = 0.1) -> float:
    """Share of sample pairs that are nearly the same.

    Args:
        distances: ``(n, n)`` between samples.
        typical: median distance between ordinary samples.
        near: pairs closer than this share of ``typical`` count.
    """
    first, second = torch.triu_indices(len(distances), len(distances), offset=1)
    return float((distances[first, second] < near * typical).double().mean())


def median_distance(distances: Tensor) -> float:
    """Median over the pairs of ``(n, n)`` distances."""
    first, second = torch.triu_indices(len(distances), len(distances), offset=1)
    return float(distances[first, second].median())
