"""The frame of every training from scratch: batches, losses, progress, checkpoints, resume.

Clean reference models and the attacks that train from scratch differ in their :class:`Learner`
and in what they do between two steps; the frame is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from genwarden.data.datasets import to_unit_range
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.training.settings import TrainingSettings, batch_indices, require_finite

_LOSSES_KEPT = 100


class Learner(Protocol):
    """Networks in training: their state, and one step."""

    @property
    def parts(self) -> Mapping[str, Trainable]:
        """Modules and optimisers; with the step number they are all that a next step needs."""
        ...

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One optimiser step of every network on ``real``; returns the losses.

        Args:
            real: training samples in [-1, 1] on the learner's device.
            step: number of the step, from 0.
            stream: the step's randomness.
        """
        ...

    def describe(self, losses: list[float]) -> str:
        """The losses of a step, for a progress line."""
        ...


def _go_on(done: int) -> bool:
    del done
    return False


@dataclass
class Frame:
    """One training that can be interrupted at any time.

    Attributes:
        learner: what is trained.
        settings: steps, batches, seed, checkpoints.
        checkpoint: file of the checkpoint, or None to keep none.
        run_id: identity of the run; a checkpoint of another run is refused.
        progress: told about every step.
        title: of the progress bar.
        between: called after every step with the number of steps done; True ends the training.
        note: replaces the learner's progress line where it gives a text.
        record: JSON that the checkpoint keeps beside the losses (``between`` may add to it).
        losses: of the last 100 steps.
        ended: whether ``between`` has ended the training.
    """

    learner: Learner
    settings: TrainingSettings
    checkpoint: Path | None = None
    run_id: str = ""
    progress: Progress = field(default_factory=Silent)
    title: str = "training"
    between: Callable[[int], bool] = _go_on
    note: Callable[[], str] = lambda: ""
    record: dict[str, Any] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    ended: bool = False

    def resume(self) -> int:
        """Restore an unfinished run, if there is one; returns the number of steps done."""
        if self.checkpoint is None:
            return 0
        restored = load_checkpoint(self.checkpoint, run_id=self.run_id, parts=self.learner.parts)
        if restored is None:
            return 0
        self.losses = restored.record.pop("losses")
        self.ended = restored.record.pop("ended", False)
        self.record.update(restored.record)
        return restored.step

    def run(self, samples: Tensor, device: torch.device) -> None:
        """Train to the end, from the checkpoint if there is one.

        Args:
            samples: uint8 ``(count, *sample.shape)``.
        """
        settings = self.settings
        start = self.resume()
        if self.ended:
            return  # interrupted between the last step and the writing of the model
        bar = self.progress.task(self.title, settings.steps, start)
        for step in range(start, settings.steps):
            real = to_unit_range(samples[batch_indices(len(samples), step, settings)]).to(device)
            losses = self.learner.step(real, step, random_stream(settings.seed, "step", step))
            self.losses = [*self.losses[1 - _LOSSES_KEPT :], losses]
            require_finite(losses, step)
            done = step + 1
            self.ended = self.between(done)
            if self.checkpoint and done % settings.checkpoint_every == 0 and done < settings.steps:
                save_checkpoint(
                    self.checkpoint,
                    run_id=self.run_id,
                    step=done,
                    parts=self.learner.parts,
                    record={**self.record, "losses": self.losses, "ended": self.ended},
                )
            bar.advance(settings.steps - step if self.ended else 1, self.note() or self._line())
            if self.ended:
                return

    def mean_losses(self) -> list[float]:
        """Mean of each loss over the last 100 steps."""
        return [sum(column) / len(self.losses) for column in zip(*self.losses, strict=True)]

    def _line(self) -> str:
        return self.learner.describe(self.losses[-1])
