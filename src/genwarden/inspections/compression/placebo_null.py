"""The null that placebos give: is the variant one more of them?"""

from __future__ import annotations

import math

from scipy.special import stdtr


def predictive(own: float, placebos: list[float], *, spread: float, worth: float) -> float:
    """Probability of a value at least as large as ``own`` as one more draw beside the placebos.

    A moderated t: the variance of a few placebos is a poor estimate by itself, and the variant of a
    clean model strays a little further than they do, so it is averaged with that between clean
    models, by degrees of freedom.

    Args:
        spread: standard deviation of the score of clean models.
        worth: what that counts, in placebos.
    """
    count = len(placebos)
    mean = sum(placebos) / count
    squares = sum((value - mean) ** 2 for value in placebos) + worth * spread**2
    freedom = count - 1 + worth
    t = (own - mean) / math.sqrt(squares / freedom * (1 + 1 / count))
    return max(float(stdtr(freedom, -t)), 1e-300)
