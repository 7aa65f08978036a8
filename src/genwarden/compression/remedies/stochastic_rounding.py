"""Stochastic rounding: up with the probability of the remainder, so that no code is certain.

Right on average, but the squared error of a weight doubles (section 4.3e of the compression
reference): the mean of f (1 - f) over a fraction f is 1/6 of a squared step, that of rounding to
nearest 1/12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.remedies.contract import Deployment, Remedied, RemedySettings
from genwarden.compression.uniform import Uniform


@dataclass(frozen=True)
class StochasticRoundingSettings(RemedySettings):
    """Only the seed of the draws."""


def stochastic_rounding(
    deployment: Deployment, compressor: Compressor, settings: StochasticRoundingSettings
) -> Remedied:
    """Round at random on the grid of the compressor."""
    assert isinstance(compressor, Uniform)  # noqa: S101 (the registry's families)
    used = replace(compressor, rounding="stochastic", seed=settings.seed)
    weights = compressed_weights(deployment.network, used, deployment.layout)
    return Remedied(weights, {}, {"compression": used.name})
