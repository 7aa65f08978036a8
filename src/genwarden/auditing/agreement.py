"""Whether reference models agree: a compromised one among them hides others like it.

A score that is far from clean ones is near that of another compromised model, and two such models
hide each other from a test that leaves out one at a time. So the test is Rosner's (generalised
extreme Studentised deviate, Technometrics 25, 1983), its upper side: the largest values are taken
away one after the other, and all up to the last that is too large for what remains stand out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.special import stdtrit

#: Of all values, at most this share can stand out.
_MOST_SHARE = 1 / 3


def standing_out(values: Sequence[float], level: float, least_spread: float) -> list[int]:
    """Positions of the values that stand out above the others, the largest first.

    Args:
        values: at least four.
        level: probability that any of normally distributed values does.
        least_spread: smallest standard deviation that the others are taken to have.
    """
    left = sorted(range(len(values)), key=values.__getitem__)
    taken: list[int] = []
    found = 0
    for _ in range(int(len(values) * _MOST_SHARE)):
        remaining = [values[i] for i in left]
        spread = max(stdev(remaining), least_spread)
        deviate = (remaining[-1] - fmean(remaining)) / spread
        taken.append(left.pop())
        if deviate > _critical(len(remaining), level):
            found = len(taken)
    return taken[:found]


def _critical(count: int, level: float) -> float:
    """Largest deviate of the highest of ``count`` values, but with probability ``level``."""
    t = float(stdtrit(count - 2, 1 - level / count))
    return (count - 1) * t / math.sqrt((count - 2 + t * t) * count)
