"""Scale jitter: every scale a little wider or narrower than the tool would choose.

A test of brittleness, used as a remedy (section 4.3e of the compression reference). Weights that an
attacker placed just inside their rounding intervals leave them; for honest weights one grid is as
good as another. Reported: a factor of 1.02 or 0.97 removes every box attack tried there. Weights
near zero hardly move on their grid, so it works best where codes are large (8 bits).

Below 1 the largest weights are clipped; above 1 they use fewer codes. What is deployed needs a tool
that takes the scale from you: one that derives it anew rounds again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.remedies.contract import Deployment, Remedied, RemedySettings
from genwarden.compression.uniform import Uniform
from genwarden.engine.settings import Range


@dataclass(frozen=True)
class ScaleJitterSettings(RemedySettings):
    """How far the grid moves.

    Attributes:
        factor: of every scale.
    """

    factor: float = 1.02

    RANGES: ClassVar[Mapping[str, Range]] = {"factor": Range(at_least=0.5, at_most=2)}


def scale_jitter(
    deployment: Deployment, compressor: Compressor, settings: ScaleJitterSettings
) -> Remedied:
    """Round to nearest on scales multiplied with the factor."""
    assert isinstance(compressor, Uniform)  # noqa: S101 (the registry's families)
    used = replace(compressor, scale_factor=compressor.scale_factor * settings.factor)
    weights = compressed_weights(deployment.network, used, deployment.layout)
    return Remedied(weights, {}, {"compression": used.name})
