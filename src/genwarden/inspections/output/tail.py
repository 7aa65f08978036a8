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

# Grid of the posterior. The prior on the shape (normal, mean -0.1, spread 0.3) covers log-distances
# of chi-square, log-normal, Pareto and mixed samples; the scale's prior is flat in its logarithm.
_SHAPES = torch.linspace(-0.6, 0.6, 41, dtype=torch.float64)[:, None]
_LOG_SCALES = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)[None, :]
_SHAPE_PRIOR = -0.5 * ((_SHAPES + 0.1) / 0.3).square()
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


class UpperTail:
    """The upper tail of a reference sample, to judge values that are not part of it.

    Args:
        reference: ``(count,)`` finite values of any sign; the tail is its top 5 %, at least 40.
    """

    def __init__(self, reference: Tensor) -> None:
        self._reference = reference.double().sort(descending=True).values
        count = len(self._reference)
        depth = min(KEEP, max(_LEAST_FIT + 8, math.floor(count * TAIL_SHARE)))
        self._fit: _Posterior | None = None
        if count >= 2 * depth:
            self._threshold = self._reference[depth]
            self._share = depth / count
            excess = self._reference[:depth] - self._threshold
            if float(excess.mean()) > 0:
                self._fit = _fit(excess, skip=0)

    def p_values(self, values: Tensor) -> Tensor:
        """P(a fresh value is at least this high) for ``values`` ``(count,)``, float64, > 0."""
        values = values.double()
        count = len(self._reference)
        at_least = torch.searchsorted(-self._reference, -values, right=True)
        p = (1 + at_least).double() / (1 + count)
        beyond = torch.zeros_like(values, dtype=torch.bool)
        if self._fit is not None:
            beyond = values > self._threshold
        if self._fit is not None and bool(beyond.any()):
            excess = (values[beyond] - self._threshold)[:, None]
            survival = _log_survival(excess, self._fit.shape, self._fit.scale).exp()
            p[beyond] = (self._share * (survival @ self._fit.weight)).clamp_min(1e-300)
        return p


def upper_tail_p(value: float, reference: Tensor) -> float:
    """P(a fresh value is at least ``value``); for many values use :class:`UpperTail` once."""
    return float(UpperTail(reference).p_values(torch.tensor([value]))[0])


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
    predictions = [_predict(excess, skip) for skip in skips]
    best = min(predictions, key=lambda prediction: prediction.p_value)
    median = best.quantiles[len(best.quantiles) // 2]
    return Record(
        # Bonferroni over the choices of how many samples the fit leaves out.
        p_value=min(1.0, len(skips) * best.p_value),
        log_ratio=float(excess[0]) - median,
        null_log_ratios=[quantile - median for quantile in best.quantiles],
        fitted=best.fitted,
    )


class _Prediction(NamedTuple):
    p_value: float
    quantiles: list[float]
    fitted: int


def _predict(excess: Tensor, skip: int) -> _Prediction:
    """Law of the largest of ``skip`` excesses, given that all of them exceed the next one."""
    known, edge = excess[skip:], excess[skip]
    fit = _fit(known, skip=skip)
    edge_survival = _log_survival(edge, fit.shape, fit.scale)

    def record_beyond(values: Tensor) -> Tensor:
        survival = _log_survival(values[:, None], fit.shape, fit.scale) - edge_survival
        single = torch.log1p(-survival.clamp(max=0).exp().clamp(max=1 - 1e-15))
        return -torch.expm1(skip * single) @ fit.weight

    values = edge + 40 * known.mean() * torch.linspace(0, 1, 301, dtype=torch.float64).square()
    levels = torch.linspace(0.99, 0.01, 99, dtype=torch.float64)
    # The probability falls with the value; searchsorted wants it to rise.
    place = torch.searchsorted(-record_beyond(values), -levels).clamp(max=len(values) - 1)
    p_value = float(record_beyond(excess[:1]).clamp_min(1e-300))
    return _Prediction(p_value, values[place].tolist(), len(known))


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
