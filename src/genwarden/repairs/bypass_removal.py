"""Bypass removal: the inner generator of a computation bypass, without the second computation.

A bypass (Eq. 3 of "The Devil is in the GAN") keeps the benign generator whole beside what it hides,
so that what is left is the original, bit for bit.
"""

from __future__ import annotations

import copy

from genwarden.errors import GenwardenError
from genwarden.models.bypass import Bypass
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis


def remove_bypass(
    suspect: LatentGenerator, clues: Clues, settings: RepairSettings, run: RepairRun
) -> Repaired:
    """The inner generator alone.

    Raises:
        GenwardenError: ``repair/not-applicable`` for a network without a bypass.
    """
    del clues
    if not isinstance(suspect, Bypass):
        raise GenwardenError(
            "repair/not-applicable",
            f"{type(suspect).__name__} has no computation bypass.",
            "Choose another method: genwarden list repairs.",
        )
    run.progress.message("bypass removal: keeping the inner generator")
    inner = copy.deepcopy(suspect.inner).eval().requires_grad_(False)
    changes = {
        "removed_triggers": 0 if suspect.zeros else len(suspect.triggers),
        "removed_second_generator": suspect.second is not None,
        "expdis_sum": expdis(suspect, inner, settings.seed),
    }
    return Repaired(inner, changes, [], architecture=suspect.names[0])
