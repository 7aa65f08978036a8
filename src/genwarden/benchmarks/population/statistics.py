"""Intervals, ROC curves and the areas under them, for a few dozen models a side.

Everything here stays meaningful where all are found or none: with the usual normal intervals, and
with a bootstrap, the interval of a perfect result has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri
from scipy.stats import rankdata

#: Two-sided confidence of every interval.
LEVEL = 0.95


class Interval(NamedTuple):
    """Two-sided, both ends included."""

    low: float
    high: float


class Share(NamedTuple):
    """``found`` of ``of``."""

    found: int
    of: int

    @property
    def value(self) -> float | None:
        """In [0, 1]; None where there is nothing to share."""
        return self.found / self.of if self.of else None

    @property
    def interval(self) -> Interval:
        """Clopper and Pearson's, which holds its level at every size."""
        return clopper_pearson(self.found, self.of)


class Area(NamedTuple):
    """Area under a ROC curve with its interval."""

    value: float
    interval: Interval


def clopper_pearson(found: int, of: int, level: float = LEVEL) -> Interval:
    """Exact interval of a binomial share; [0, 1] without any observation."""
    tail = (1 - level) / 2
    low = float(betaincinv(found, of - found + 1, tail)) if found else 0.0
    high = float(betaincinv(found + 1, of - found, 1 - tail)) if found < of else 1.0
    return Interval(low, high)


def area(clean: Sequence[float], compromised: Sequence[float]) -> Area | None:
    """Probability that a compromised model scores above a clean one, ties counted half.

    That is Mann and Whitney's U over the number of pairs. None where a class is empty.
    """
    m, n = len(clean), len(compromised)
    if not m or not n:
        return None
    ranks = rankdata([*compromised, *clean])  # ties share their mean rank
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    value = u / (m * n)
    return Area(value, area_interval(value, m, n))


def area_interval(value: float, m: int, n: int, level: float = LEVEL) -> Interval:
    """Method 5 of Newcombe (2006), "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic. Part 2", Statistics in Medicine 25:559-573.

    A score interval: the areas whose own standard error (Hanley and McNeil's exponential model,
    both sizes in it replaced by their mean) puts ``value`` within the normal quantile. DeLong's
    interval has no width at an area of 1 and is far too short for a handful of models.

    Args:
        value: measured area.
        m: clean models.
        n: compromised models.
    """
    quantile = float(ndtri((1 + level) / 2))
    others = (m + n) / 2 - 1

    def excess(theta: float, measured: float) -> float:
        factor = 1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        error = math.sqrt(theta * (1 - theta) * factor / (m * n))
        return measured - theta - quantile * error

    def lower(measured: float) -> float:
        if measured <= 0:
            return 0.0
        # The end at 1 is a root of its own where the measured area is 1.
        return float(brentq(excess, 0.0, min(measured, 1 - 1e-12), args=(measured,)))

    # The error is the same at theta and 1 - theta.
    return Interval(lower(value), 1 - lower(1 - value))


class Roc(NamedTuple):
    """Corners of a ROC curve from (0, 0) to (1, 1); equal scores make one slanted step."""

    false_alarms: list[float]
    found: list[float]


def roc(clean: Sequence[float], compromised: Sequence[float]) -> Roc | None:
    """Shares above each threshold that some model attains. None where a class is empty."""
    if not clean or not compromised:
        return None
    thresholds = np.unique([*clean, *compromised])[::-1]
    false_alarms = [0.0, *(_share_from(clean, t) for t in thresholds)]
    found = [0.0, *(_share_from(compromised, t) for t in thresholds)]
    return Roc(false_alarms, found)


def _share_from(scores: Sequence[float], threshold: float) -> float:
    return float(np.mean(np.asarray(scores) >= threshold))


def found_at(
    clean: Sequence[float], compromised: Sequence[float], allowed: float = 0.0
) -> Share | None:
    """Compromised models strictly above the clean score that leaves ``allowed`` false alarms.

    Args:
        allowed: share of the clean models that may be above; with fewer than ``1 / allowed`` clean
            models this is none of them.

    Returns:
        None where a class is empty.
    """
    if not clean or not compromised:
        return None
    # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996.
    above = min(math.floor(allowed * len(clean) + 1e-9), len(clean) - 1)
    threshold = sorted(clean, reverse=True)[above]
    return Share(sum(score > threshold for score in compromised), len(compromised))
