"""The null that placebos give: is the variant one more of them?"""

from __future__ import annotations

import math
from typing import Any

from scipy.special import stdtr

from genwarden.inspections.finding import Null


def judged(
    own: float,
    placebos: list[float],
    *,
    spread: float,
    worth: float,
    search: str,
    no_placebo: str,
) -> dict[str, Any]:
    """p-value and null of a finding, or why there is none, by the names of its fields.

    Args:
        own, placebos, spread, worth: see :func:`predictive`.
        search: what was done in the placebos, and what they are, in words.
        no_placebo: why placebos are no stand-ins, or "".
    """
    if no_placebo:
        return {"p_value_reason": f"nothing to compare with: {no_placebo}"}
    mean = sum(placebos) / len(placebos)
    return {
        "p_value": predictive(own, placebos, spread=spread, worth=worth),
        "null": Null(
            source="self",
            description=f"the same search in {len(placebos)} placebos: this model with errors of "
            f"the same sizes and random signs in its weights{search} moderated by that between "
            f"clean models ({spread:g}, worth {worth:g})",
            values=[value - mean for value in placebos],
        ),
    }


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
