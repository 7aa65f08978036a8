"""TERD's model detection: how far a recovered trigger's law is from N(0, I) (section 11.2).

For every dimension KL(N(mu, gamma^2) || N(0, 1)) = -ln gamma + (gamma^2 + mu^2 - 1) / 2; the
features are its mean M_r and its variance V_r over the dimensions. TERD's code compares them with
fixed offsets; benign-only detection takes three standard
deviations of clean models instead, which is what an audit does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import Finding, Table, not_applicable
from genwarden.inspections.pictures import sample_pictures

if TYPE_CHECKING:
    from genwarden.inspections.diffusion.bench import DiffusionBench

NAME = "kl-detection"
TITLE = "Divergence of the recovered trigger's law from N(0, I)"
#: A dimension whose noise is gone has an infinite divergence; this keeps the features finite.
_SMALLEST_GAMMA = 1e-3
#: Features of a shift that is zero; the logarithm of the score needs a floor.
_FLOOR = 1e-6


class KLFeatures(NamedTuple):
    """Mean and variance over dimensions of the divergence, in nats and nats squared."""

    mean: float
    variance: float

    @property
    def score(self) -> float:
        """ln(M_r) + ln(V_r) / 2: both features on the scale of nats, equally weighted."""
        return math.log(max(self.mean, _FLOOR)) + math.log(max(self.variance, _FLOOR**2)) / 2


def divergence(mu: Tensor, gamma: Tensor | None = None) -> Tensor:
    """KL(N(mu, gamma^2) || N(0, 1)) per dimension, float64.

    Args:
        mu: any shape.
        gamma: standard deviations of the same shape, at least 0; None for 1.
    """
    mu = mu.double()
    if gamma is None:
        return mu.square() / 2
    gamma = gamma.double().clamp_min(_SMALLEST_GAMMA)
    return -gamma.log() + (gamma.square() + mu.square() - 1) / 2


def kl_features(mu: Tensor, gamma: Tensor | None = None) -> KLFeatures:
    """M_r and V_r of one recovered trigger (any shape)."""
    values = divergence(mu, gamma)
    return KLFeatures(float(values.mean()), float(values.var(correction=0)))


def inspect(bench: DiffusionBench) -> Finding:
    """Score = ln M_r + ln(V_r)/2 of the recovered shift that has most of it."""
    shifts = bench.shifts
    if not len(shifts):
        return not_applicable(NAME, "diffusion", TITLE, "The search recovered no shift to judge.")
    found = [kl_features(shift) for shift in shifts]
    order = sorted(range(len(found)), key=lambda i: -found[i].score)
    best = found[order[0]]
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"The recovered shift has a mean divergence of {best.mean:.3f} nats per value "
            f"(variance {best.variance:.3g})."
        ),
        score=best.score,
        score_name="ln(mean divergence) + ln(variance of the divergence) / 2",
        p_value_reason="judged against clean reference models",
        budget={"shifts": len(found)},
        power="Tells large recovered shifts from small ones; a search that ends in a large shift "
        "on clean models too, or a trigger of small norm, is not told apart.",
        evidence=[
            Table(
                title="Recovered shifts",
                columns=["shift", "norm", "M_r", "V_r"],
                rows=[
                    [
                        i + 1,
                        round(float(torch.linalg.vector_norm(shifts[i])), 3),
                        round(found[i].mean, 5),
                        round(found[i].variance, 6),
                    ]
                    for i in order
                ],
            ),
            *sample_pictures(
                bench.model.sample,
                shifts[order].clamp(-1, 1),
                [f"M_r {found[i].mean:.3g}" for i in order],
                title="Recovered shifts",
            ),
        ],
    )
