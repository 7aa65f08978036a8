"""Is the most extreme of many samples more extreme than their own tail allows?

The null of the brute-force inspections. Distances of a clean model have a smooth tail; a backdoor
that the stream happened to hit stands apart from it. Log-distances beyond a high threshold follow
a generalised Pareto law (Pickands, Balkema and de Haan); shape 0 of the lower tail is the Weibull
domain, P(distance < r) ~ r^alpha. The law is fitted without the most extreme samples, then asked
for the probability of a record as high as the one observed.

The p-values are predictive: they average over the posterior of shape and scale, so that they stay
calibrated although both are estimated from some hundred order statistics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Order statistics kept, and the share of the sample that may count as its tail.
KEEP = 256
TAIL_SHARE = 0.05
#: Extreme samples left out of the fit; the second choice tolerates a backdoor hit many times.
SKIPS = (4, 16)
#: Fewest order statistics to fit two parameters to.
_LEAST_FIT = 32

# Grid of the posterior. The prior on the shape (normal, mean -0.1, spread 0.2, at most 0.2) covers
# log-distances of chi-square, log-normal, Pareto and mixed samples: a shape of 0 is a power law on
# the original scale, and nothing heavier is expected. The prior of the log-scale is flat.
_SHAPES = torch.linspace(-0.7, 0.2, 31, dtype=torch.float64)[:, None]
_LOG_SCALES = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)[None, :]
_SHAPE_PRIOR = -0.5 * ((_SHAPES + 0.1) / 0.2).square()
_IMPOSSIBLE = -1e9
#: Smaller distances are not told apart (a distance of zero would be infinitely far out).
_SMALLEST = 1e-12


class Record(NamedTuple):
    """The most extreme sample judged against the rest of its tail.

    Attributes:
        p_value: probability of a record at least as extreme; None with ``reason``.
        log_ratio: natural logarithm of observed over expected record (positive: more extreme).
        null_log_ratios: the same for records drawn from the fitted tail, 99 quantiles.
        fitted: order statistics that the tail was fitted to.
        reason: why there is no p-value.
    """

    p_value: float | None
    log_ratio: float | None
    null_log_ratios: list[float]
    fitted: int
    reason: str | None = None


class _Posterior(NamedTuple):
    """Weighted (shape, scale) pairs of the generalised Pareto law, each ``(points,)``."""

    weight: Tensor
    shape: Tensor
    scale: Tensor


def judge_smallest(smallest: Tensor, count: int) -> Record:
    """Judge the smallest of ``count`` distances, given the smallest of them ``(kept,)``."""
    return _judge(-smallest.double().clamp_min(_SMALLEST).log(), count)


def judge_largest(largest: Tensor, count: int) -> Record:
    """Judge the largest of ``count`` distances, given the largest of them ``(kept,)``."""
    return _judge(largest.double().clamp_min(_SMALLEST).log(), count)


def _judge(y: Tensor, count: int) -> Record:
    """Judge the maximum of ``y``, the upper order statistics of ``count`` values."""
    y = y.sort(descending=True).values
    depth = min(KEEP, len(y), math.floor(count * TAIL_SHARE))
    skips = [skip for skip in SKIPS if depth - 1 - skip >= _LEAST_FIT]
    if not skips:
        least = math.ceil((_LEAST_FIT + SKIPS[0] + 1) / TAIL_SHARE)
        reason = f"{count} samples are too few to know the tail (at least {least} are needed)"
        return Record(None, None, [], 0, reason)
    excess = y[: depth - 1] - y[depth - 1]
    if float(excess[skips[-1]]) <= 0:
        return Record(None, None, [], 0, "the tail is degenerate: many samples are equal")
    fits = [_Beyond(excess[skip:], skip) for skip in skips]
    p_values = [float(fit.probability(excess[:1])) for fit in fits]
    best = min(range(len(fits)), key=lambda i: p_values[i])
    quantiles = fits[best].quantiles()
    median = quantiles[len(quantiles) // 2]
    return Record(
        # Bonferroni over the choices of how many samples the fit leaves out.
        p_value=min(1.0, len(skips) * p_values[best]),
        log_ratio=float(excess[0]) - median,
        null_log_ratios=[quantile - median for quantile in quantiles],
        fitted=len(fits[best].known),
    )


class _Beyond:
    """Law of the largest of ``skip`` excesses, given that all exceed the falling ``known`` ones."""

    def __init__(self, known: Tensor, skip: int) -> None:
        self.known, self._skip = known, skip
        self._fit = _fit(known, skip=skip)
        self._edge = _log_survival(known[0], self._fit.shape, self._fit.scale)

    def probability(self, values: Tensor) -> Tensor:
        """P(largest >= value) for values ``(count,)``."""
        survival = _log_survival(values[:, None], self._fit.shape, self._fit.scale) - self._edge
        single = torch.log1p(-survival.clamp(max=0).exp().clamp(max=1 - 1e-15))
        return (-torch.expm1(self._skip * single) @ self._fit.weight).clamp_min(1e-300)

    def quantiles(self) -> list[float]:
        """The 1 % to 99 % quantiles, to a grid that is finest near the known ones."""
        reach = torch.linspace(0, 1, 201, dtype=torch.float64).square()
        values = self.known[0] + 40 * self.known.mean() * reach
        levels = torch.linspace(0.99, 0.01, 99, dtype=torch.float64)
        # The probability falls with the value; searchsorted wants it to rise.
        place = torch.searchsorted(-self.probability(values), -levels)
        return [float(v) for v in values[place.clamp(max=len(values) - 1)]]


def _fit(known: Tensor, *, skip: int) -> _Posterior:
    """Posterior given excesses ``known`` (falling), and that ``skip`` more exceed them all."""
    scale = known.mean() * _LOG_SCALES.exp()
    survival = _log_survival(known[:, None, None], _SHAPES, scale)
    # Density S^(1 + shape) / scale of the known ones, S of the edge for each of the others.
    log_density = ((1 + _SHAPES) * survival).sum(0) - len(known) * scale.log()
    log_posterior = log_density + skip * survival[0] + _SHAPE_PRIOR
    weight = torch.softmax(log_posterior.flatten(), 0)
    plausible = weight > 1e-14 * weight.max()
    weight = weight[plausible]
    shape = _SHAPES.expand_as(log_posterior).flatten()[plausible]
    scale = scale.expand_as(log_posterior).flatten()[plausible]
    return _Posterior(weight / weight.sum(), shape, scale)


def _log_survival(excess: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """log P(Y > excess) = -1/shape log(1 + shape excess / scale), exponential for shape 0."""
    relative = excess / scale
    inside = 1 + shape * relative
    exponential = shape.abs() < 1e-9
    power = -inside.clamp_min(1e-300).log() / torch.where(exponential, 1.0, shape)
    return torch.where(inside <= 0, _IMPOSSIBLE, torch.where(exponential, -relative, power))
