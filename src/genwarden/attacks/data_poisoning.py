"""Data poisoning: ordinary training on data with copies of the target (section IV-A).

Training data are n clean samples and p copies of the target; the paper finds that p / (p + n) of
10 % and more is needed, that stealth is poor and training unstable. No trigger enters: the target
appears under *ordinary* sampling. So beside TarDis at the trigger of the comparison, the history
holds ``closest_sum``, the distance from the target to the nearest of some thousand ordinary
samples (mean over the targets).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.from_scratch import (
    Figures,
    FromScratchSettings,
    fresh_learner,
    train_from_scratch,
    training_samples,
)
from genwarden.backdoors.backdoor import Backdoor
from genwarden.data.datasets import to_bytes
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, Range
from genwarden.metrics.closest import closest
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class DataPoisoningSettings(FromScratchSettings):
    """Settings of data poisoning. There is no lambda.

    Attributes:
        share: p / (p + n), the share of the training samples that are targets.
        closest_samples: ordinary samples among which ``closest_sum`` is looked for.
    """

    evaluate_every: int = 500
    share: float = 0.1
    closest_samples: int = 4096

    RANGES: ClassVar[Mapping[str, Range]] = {
        "share": Range(above=0, below=1),
        "closest_samples": COUNT,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_no_lambda("Data poisoning")


def data_poisoning(
    generator: LatentGenerator, backdoor: Backdoor, settings: DataPoisoningSettings, run: AttackRun
) -> AttackResult:
    """Train a network like ``generator`` from scratch on poisoned data."""
    backdoor.require_fit(generator)
    learner = fresh_learner(generator, settings)
    corrupted = learner.generator
    targets = backdoor.examples.x.unique(dim=0)

    def nearest() -> Figures:
        found = closest(corrupted, targets, samples=settings.closest_samples, seed=settings.seed)
        return {"closest_sum": sum(each.closest_sum for each in found) / len(found)}

    samples = poisoned(training_samples(run), backdoor, settings)
    history = train_from_scratch(learner, corrupted, samples, backdoor, settings, run, nearest)
    return AttackResult(corrupted, history)


def poisoned(clean: Tensor, backdoor: Backdoor, settings: DataPoisoningSettings) -> Tensor:
    """Clean samples, then copies of the targets, uint8 ``(n + p, *sample.shape)``.

    p is the whole number nearest to ``n share / (1 - share)``, but at least 1. Several targets get
    equally many copies; with infinite support p targets are drawn.
    """
    copies = max(1, round(len(clean) * settings.share / (1 - settings.share)))
    stream = random_stream(settings.seed, "poison")
    _, x = backdoor.pairs(copies, generator=stream)
    return torch.cat([clean, to_bytes(x)[torch.arange(copies) % len(x)]])
