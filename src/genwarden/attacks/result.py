"""What an attack returns."""

from __future__ import annotations

from typing import NamedTuple

from genwarden.models.protocol import LatentGenerator


class AttackResult(NamedTuple):
    """The compromised model and the history of evaluations (step, tardis_sum, expdis_sum)."""

    generator: LatentGenerator
    history: list[dict[str, float]]
