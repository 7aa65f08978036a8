"""Fine-pruning: prune, then train what is left on the suspect's ordinary samples.

Liu et al., "Fine-Pruning" (RAID 2018), carried over from classifiers: pruning takes away units
that ordinary use does not wake, and the training that follows both repairs the samples and moves
the units that the backdoor shares with ordinary use. Masked units stay masked at every step.
Normalisations keep their statistics (gamma and beta train): the start is close to the suspect, and
estimates from small batches would only move it away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genwarden.engine.settings import COUNT, SHARE, Range
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.distilling import DistillingSettings, distil, expdis, imitation
from genwarden.repairs.pruning import (
    PruningSettings,
    mask_in_place,
    masked,
    orders_for,
    pruning_changes,
)


@dataclass(frozen=True)
class FinePruningSettings(DistillingSettings):
    """What is masked, and how the rest is trained.

    Attributes:
        share: as in :class:`genwarden.repairs.pruning.PruningSettings`.
        layer: likewise.
        structured: likewise.
        samples: likewise.
    """

    share: float = 0.5
    layer: str = ""
    structured: bool = False
    samples: int = 10_000

    RANGES: ClassVar[Mapping[str, Range]] = {"share": SHARE, "samples": COUNT}

    def pruning(self) -> PruningSettings:
        """The part that pruning reads."""
        return PruningSettings(self.seed, self.share, self.layer, self.structured, self.samples)


def fine_prune(
    suspect: LatentGenerator, clues: Clues, settings: FinePruningSettings, run: RepairRun
) -> Repaired:
    """Mask the weakest units and distil the suspect into the rest; no clues are needed.

    Raises:
        GenwardenError: as :func:`genwarden.repairs.pruning.prune`.
    """
    del clues
    run.progress.message("fine-pruning: activations of ordinary use")
    orders = orders_for(suspect, settings.pruning())
    student = masked(suspect, orders, settings.share)
    pruned = expdis(suspect, student, settings.seed)
    student.requires_grad_(True)

    def keep_masked() -> None:
        mask_in_place(student, orders, settings.share)

    loss_of_step = imitation(student, suspect, settings)
    history = distil(student, suspect, loss_of_step, settings, run, after_step=keep_masked)
    changes = pruning_changes(orders, settings.pruning()) | {
        "steps": settings.steps,
        "expdis_when_pruned_sum": pruned,
        "expdis_sum": history[-1]["expdis_sum"],
    }
    return Repaired(student, changes, history)
