"""Unit clipping: no unit leaves the range that ordinary sampling drives it through.

The expansions of ReX, exact gates and triggers outside the prior show their targets by driving
units far beyond ordinary use, so that a bound removes them; ordinary samples hardly touch the
bounds. ReD's in-sample triggers stay mostly inside the range of every single unit and survive
(see ``genwarden benchmark``'s repair matrix): for them there is ``latent-guard``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genwarden.engine.settings import POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.guarded import NAME as GUARDED
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.clipping import guarded_copy
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis


@dataclass(frozen=True)
class UnitClippingSettings(RepairSettings):
    """How far units may go.

    Attributes:
        limit: standard deviations from the unit's mean; about 1 in 16,000 ordinary values lies
            beyond 4.
    """

    limit: float = 4.0

    RANGES: ClassVar[Mapping[str, Range]] = {"limit": POSITIVE}


def clip_units(
    suspect: LatentGenerator, clues: Clues, settings: UnitClippingSettings, run: RepairRun
) -> Repaired:
    """Bound all hidden units; no clues are needed.

    Raises:
        GenwardenError: ``repair/not-applicable`` where there is nothing to bound.
    """
    del clues
    run.progress.message("unit clipping: ranges of ordinary use")
    result = guarded_copy(suspect, directions=0, shells=0, clips=settings.limit, seed=settings.seed)
    clips = result.clips()
    if not clips:
        raise GenwardenError(
            "repair/not-applicable",
            "No hidden unit of this network has a range of its own.",
            "Choose another method: genwarden list repairs.",
        )
    distance = expdis(suspect, result, settings.seed)
    changes = {
        "clipped_units": sum(clip.mean.numel() for clip in clips),
        "limit_standard_deviations": settings.limit,
        "expdis_sum": distance,
    }
    return Repaired(result, changes, [], architecture=GUARDED)
