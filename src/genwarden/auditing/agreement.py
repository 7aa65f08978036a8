"""Whether reference models agree: one that is far from the others hides a backdoor.

A score that is far from clean ones is near that of another compromised model, and two such models
hide each other from a test that leaves out one at a time. One far *below* the others, such as a
training that failed, widens the spread, and a score far above them is lost in it. So the test is
Rosner's (generalised extreme Studentised deviate, Technometrics 25, 1983): the values farthest from
the mean are taken away one after the other, and all up to the last that is too far from what
remains stand out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.special import stdtrit

#: Of all values, at most this share can stand out.
_MOST_SHARE = 1 / 3


def standing_out(values: Sequence[float], level: float, least_spread: float) -> list[int]:
    """Positions of the values that stand out from the others, the farthest first.

    Args:
        values: at least four.
        level: probability that any of normally distributed values does.
        least_spread: smallest standard deviation that the others are taken to have.
    """
    left = list(range(len(values)))
    taken: list[int] = []
    found = 0
    for _ in range(int(len(values) * _MOST_SHARE)):
        remaining = [values[i] for i in left]
        mean, spread = fmean(remaining), max(stdev(remaining), least_spread)
        farthest = max(left, key=lambda i: abs(values[i] - mean))
        taken.append(farthest)
        left.remove(farthest)
        if abs(values[farthest] - mean) / spread > _critical(len(remaining), level):
            found = len(taken)
    return taken[:found]


def _critical(count: int, level: float) -> float:
    """Largest absolute deviate of ``count`` values, but with probability ``level``."""
    t = float(stdtrit(count - 2, 1 - level / (2 * count)))
    return (count - 1) * t / math.sqrt((count - 2 + t * t) * count)
