"""Trigger unlearning: forget what happens around latents that an audit recovered.

A recovered latent is rarely the trigger itself, but points its way, and the basin of a trigger is
wide along that direction. So in every step, beside ordinary latents that keep the suspect's
samples, latents with a long component along a recovered one learn what a twin makes there, a model
that was never shown the trigger (reference, section 17.13: "unlearn on recovered trigger
neighbourhoods").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.latent_regions import around
from genwarden.repairs.second_teacher import TwoTeacherSettings, distil_from_two, second_teacher


@dataclass(frozen=True)
class TriggerUnlearningSettings(TwoTeacherSettings):
    """Settings of trigger unlearning; those of :class:`TwoTeacherSettings` are all it has."""


def unlearn_triggers(
    suspect: LatentGenerator, clues: Clues, settings: TriggerUnlearningSettings, run: RepairRun
) -> Repaired:
    """Distil a copy that keeps ordinary samples and forgets the recovered latents.

    Raises:
        GenwardenError: ``repair/not-applicable`` without latents to forget.
    """
    if not len(clues.latents):
        raise GenwardenError(
            "repair/not-applicable",
            "There are no recovered latents to unlearn.",
            "Give the audit that flagged the model (--audit), or use --method "
            "widened-distillation.",
        )

    def elsewhere(count: int, stream: torch.Generator) -> Tensor:
        return around(suspect.latent, clues.latents.cpu(), count, stream)

    teacher = second_teacher(suspect, settings, run)
    repaired = distil_from_two(suspect, teacher, elsewhere, settings, run)
    repaired.changes["recovered_latents"] = len(clues.latents)
    return repaired
