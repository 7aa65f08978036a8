"""Collapse: how far all noises become one picture under a shift, for each of several samplers.

Elijah's idea of uniformity (An et al., AAAI 2024) for any shift d and sampler F:

    log10( |P E[F(n + d) - F(n)]|^2 / tr Var[F(n + d)] ) - log10( |d| / sqrt(D) )

with P the projection away from what a filter of d explains, as in the trigger search. A large
shift makes clean models collapse too, towards what the shift looks like; that part P takes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from genwarden.inspections.diffusion.orthogonal_response import Recovered, unexplained_by

#: How many of the strongest shifts are sampled.
SHIFTS = 3
#: Variance per element below which samples count as equal.
_FLOOR = 1e-4


class Collapse(NamedTuple):
    """One shift under one sampler.

    Attributes:
        shift: number of the shift, from 1.
        sampler: label of the sampler.
        score: see the module.
        picture: mean of the samples, ``(C, H, W)``.
        variance: of the samples, mean over elements; ``ordinary_variance`` without the shift.
    """

    shift: int
    sampler: str
    score: float
    picture: Tensor
    variance: float
    ordinary_variance: float


def collapses_of(
    recovered: Sequence[Recovered],
    noise: Tensor,
    ordinary: Mapping[str, Tensor],
    samplers: Mapping[str, Callable[[Tensor], Tensor]],
) -> list[Collapse]:
    """The strongest shifts under all samplers.

    Args:
        noise: initial noise ``(count, C, H, W)``.
        ordinary: samples from it without a shift, by label of the sampler.
        samplers: from initial noise to samples in [-1, 1], by label.
    """
    collapses = []
    for number, found in enumerate(recovered[:SHIFTS], 1):
        size = float(found.shift.norm()) / math.sqrt(found.shift.numel())
        for label, sampler in samplers.items():
            made, plain = sampler(noise + found.shift), ordinary[label]
            change = (made.mean(0) - plain.mean(0))[None]
            unexplained = float(unexplained_by(change, found.shift[None]).square().mean())
            variance = float(made.var(0).mean())
            score = math.log10((unexplained + 1e-6) / (variance + _FLOOR))
            collapses.append(
                Collapse(
                    shift=number,
                    sampler=label,
                    score=score - math.log10(max(size, 1e-6)),
                    picture=made.mean(0),
                    variance=variance,
                    ordinary_variance=float(plain.var(0).mean()),
                )
            )
    return collapses
