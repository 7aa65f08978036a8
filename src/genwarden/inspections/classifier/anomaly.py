"""Is one class's number far from the others'? (Neural Cleanse, section 4.3 of the paper.)"""

from __future__ import annotations

import math
from typing import Final

import torch
from scipy.special import stdtr
from torch import Tensor

#: Of a normal law, standard deviation over median absolute deviation.
_NORMAL: Final = 1.4826
#: With fewer classes their spread is unknown.
LEAST_CLASSES: Final = 4
#: Smallest standard deviation that logarithms of honest classes' mask norms are taken to have (0.4
#: in the small networks of the tests): values that happen to be nearly equal are no evidence.
LEAST_SPREAD: Final = 0.1
_TINY: Final = 1e-12


def mad_anomaly(values: Tensor) -> Tensor:
    """How far each of ``(classes,)`` lies below the median, in robust standard deviations."""
    median = values.double().quantile(0.5)
    spread = _NORMAL * (values - median).abs().quantile(0.5)
    return (median - values) / spread.clamp_min(_TINY)


def smallest_p(values: Tensor, known: Tensor | None = None) -> float | None:
    """Probability that the smallest of ``(classes,)`` is as small by chance.

    Student-t prediction from the other classes, as if the values were draws of one normal law;
    Bonferroni over the classes. None where fewer than :data:`LEAST_CLASSES` are known.

    Args:
        values: logarithms.
        known: which of them were measured; all if None. A bound in place of a value says nothing
            of the spread.
    """
    count = len(values)
    if known is not None:
        values = values[known]
    if len(values) < LEAST_CLASSES:
        return None
    own = int(values.argmin())
    others = torch.cat([values[:own], values[own + 1 :]]).double()
    spread = max(float(others.std()), LEAST_SPREAD) * math.sqrt(1 + 1 / len(others))
    t = (float(values[own]) - float(others.mean())) / spread
    return min(1.0, max(count * float(stdtr(len(others) - 1, t)), 1e-300))
