"""ReX, then joint retraining of all weights: no zero block, no frozen benign weight remains.

The widened network of ReX ("The Devil is in the GAN", section IV-C) is where ReD (section IV-B)
starts; Adam moves every weight, those between the blocks too (section 16; derived). The defender
keeps the larger capacity as a sign, but neither exact zeros nor exact copies of a known network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from genwarden.attacks.adaptive.retraining import retrain, stage
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.settings import COUNT, POSITIVE, Range
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class FinetunedReXSettings(ReXSettings):
    """Settings of ReX, and of the joint retraining.

    Attributes:
        finetuning_steps: optimiser steps on all weights.
        finetuning_rate: Adam's learning rate there, at the start.
        finetuning_weight: lambda there, ReD's.
    """

    finetuning_steps: int = 1000
    finetuning_rate: float = 2e-4
    finetuning_weight: float = 3e-3

    RANGES: ClassVar[Mapping[str, Range]] = {
        "finetuning_steps": COUNT,
        "finetuning_rate": POSITIVE,
        "finetuning_weight": POSITIVE,
    }

    def finetuning(self) -> ReXSettings:
        """The settings of the second stage."""
        return replace(
            self,
            steps=self.finetuning_steps,
            learning_rate=self.finetuning_rate,
            fidelity_weight=self.finetuning_weight,
        )


def finetuned_rex(
    generator: LatentGenerator, backdoor: Backdoor, settings: FinetunedReXSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` by ReX, then retrain the widened network as a whole."""
    result = rex(generator, backdoor, settings, stage(run, "rex"))
    wide = result.generator.eval().requires_grad_(True)
    history = retrain(wide, generator, backdoor, settings.finetuning(), stage(run, "finetuning"))
    before = result.history[-1]["step"] or 0  # fewer than asked for where ReX stopped early
    history = [{**row, "step": before + (row["step"] or 0)} for row in history]
    return AttackResult(wide.requires_grad_(False), [*result.history, *history])
