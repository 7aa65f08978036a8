"""What a repair of a diffusion model takes and returns; each file holds one function of this form.

A repair gets what a defender has: the suspect, what an audit of it recovered, and images of the
user's own where there are any. It never sees a trigger, a target or a clean base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.repairs.contract import RepairRun, RepairSettings


@dataclass(frozen=True)
class DiffusionRepairSettings(RepairSettings):
    """How a denoiser is fine-tuned; every repair of a diffusion model does that in the end.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step; a method may make several rows of each.
        learning_rate: Adam's largest; rises over the first tenth, then falls along a half cosine.
        ema: decay of the moving average of the weights that is kept; 0 keeps the weights.
        own_samples: samples of the suspect that stand in for data where the user gave none.
        sampler_steps: DDIM steps of each of them.
        evaluate_every: steps between two rows of the history and two checkpoints.
    """

    steps: int = 250
    batch_size: int = 32
    learning_rate: float = 2e-4
    ema: float = 0.99
    own_samples: int = 512
    sampler_steps: int = 50
    evaluate_every: int = 100

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "ema": Range(at_least=0, below=1),
        "own_samples": COUNT,
        "sampler_steps": COUNT,
        "evaluate_every": COUNT,
    }


#: The range of a setting that is a share of [0, 1) of something.
PART = Range(at_least=0, below=1)
#: The range of a weight.
WEIGHT = NOT_NEGATIVE


@dataclass(frozen=True)
class DiffusionClues:
    """What an audit of the suspect recovered; CPU, float32, may be empty.

    Attributes:
        trigger: r, ``(C, H, W)``, as a shift of the noise fed with rho_t = 1 - a_t, or None.
        target: y in [-1, 1], ``(C, H, W)``, or None.
        shifts: of the trigger search, ``(k, C, H, W)``, strongest first.
        flagged: names of the inspections that were flagged.
    """

    trigger: Tensor | None
    target: Tensor | None
    shifts: Tensor
    flagged: tuple[str, ...] = ()

    def directions(self) -> Tensor:
        """Every recovered shift, the refined trigger first, ``(k, C, H, W)``; zeros left out.

        Raises:
            GenwardenError: ``repair/not-applicable`` if there is none.
        """
        refined = self.shifts[:0] if self.trigger is None else self.trigger[None]
        found = torch.cat([refined, self.shifts])
        found = found[found.flatten(1).norm(dim=1) > 0]
        if not len(found):
            raise GenwardenError(
                "repair/not-applicable",
                "The audit recovered no shift of the noise that could be unlearnt.",
                "Give the audit that found evidence (--audit), or use --method elijah-removal, "
                "which looks for a trigger itself.",
            )
        return found


@dataclass(frozen=True)
class DiffusionRepairRun(RepairRun):
    """Where one run keeps its state (see :class:`RepairRun`), and the user's images.

    Attributes:
        images: uint8 ``(count, C, H, W)``, or None: the suspect's own samples stand in.
    """

    images: Tensor | None = None


class DiffusionRepaired(NamedTuple):
    """The repaired model and how it came about.

    Attributes:
        model: a new network in evaluation mode, without gradients, on the suspect's device.
        changes: what was done, in plain numbers and words for ``repair.json``.
        history: figures along the way (:mod:`.finetuning`).
    """

    model: DiffusionModel
    changes: dict[str, Any]
    history: list[dict[str, float]]


class DiffusionRepair(Protocol):
    """One remedy."""

    def __call__(
        self,
        suspect: DiffusionModel,
        clues: DiffusionClues,
        settings: Any,
        run: DiffusionRepairRun,
    ) -> DiffusionRepaired:
        """Return a new network; the suspect stays as it is.

        Raises:
            GenwardenError: ``repair/not-applicable`` where the clues hold nothing that this remedy
                works on; ``train/diverged``.
        """
        ...


def no_diffusion_clues(suspect: DiffusionModel) -> DiffusionClues:
    """Clues of nobody: an audit that was not made, or found nothing."""
    return DiffusionClues(None, None, torch.zeros(0, *suspect.sample.shape))
