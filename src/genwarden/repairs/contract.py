"""What a repair takes and returns; every file of this room holds one function of this form.

A repair gets what a defender has: the suspect, and clues that an audit of that suspect wrote down.
It never sees a trigger, a target or a benign original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.settings import ANY, Range, Settings
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class RepairSettings(Settings):
    """Settings that every repair has; each adds its own in its own file.

    Attributes:
        seed: run seed; every random act derives from it.
    """

    seed: int = 0

    CODE: ClassVar[str] = "repair"
    RANGES: ClassVar[Mapping[str, Range]] = {"seed": ANY}


@dataclass(frozen=True)
class Clues:
    """What an audit of the suspect wrote down that a repair can use; may be empty.

    Attributes:
        latents: latents of flagged findings and candidates ``(count, *latent.shape)``, CPU, float32
            (``count`` may be 0). They may lie near a trigger, or may not.
        flagged: names of the inspections that were flagged.
    """

    latents: Tensor
    flagged: tuple[str, ...] = ()


@dataclass(frozen=True)
class RepairRun:
    """Where one run of a repair keeps its state.

    Attributes:
        progress: told about long work.
        work: folder of checkpoints, or None to keep none.
        run_id: identity of the run; a checkpoint of another run is refused.
    """

    progress: Progress = field(default_factory=Silent)
    work: Path | None = None
    run_id: str = ""


class Repaired(NamedTuple):
    """The repaired model and how it came about.

    Attributes:
        generator: a new network in evaluation mode, without gradients, on the suspect's device.
        changes: what was done, in plain numbers and words for ``repair.json``.
        history: figures along the way: ``step``, ``expdis_sum`` (to the suspect), and what else the
            repair records; empty where nothing is trained.
        architecture: registered name, where it is not that of the suspect.
    """

    generator: LatentGenerator
    changes: dict[str, Any]
    history: list[dict[str, float]]
    architecture: str | None = None


class Repair(Protocol):
    """One remedy."""

    def __call__(
        self, suspect: LatentGenerator, clues: Clues, settings: Any, run: RepairRun
    ) -> Repaired:
        """Return a new network; the suspect stays as it is.

        Raises:
            GenwardenError: ``repair/not-applicable`` where the suspect has nothing that this remedy
                works on.
        """
        ...


def no_clues(suspect: LatentGenerator) -> Clues:
    """Clues of nobody: an audit that was not made, or found nothing."""
    return Clues(torch.zeros(0, *suspect.latent.shape))
