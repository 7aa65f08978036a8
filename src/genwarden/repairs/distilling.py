"""The training loop of all repairs that distil: Adam, a half cosine, checkpoints, ExpDis.

Every random act of a step derives from (seed, step), so a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import ExpDis
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import RepairRun, RepairSettings

#: Held-out ordinary latents on which ExpDis to the suspect is followed.
EVALUATION_SAMPLES = 1024
_BLOCK = 256


@dataclass(frozen=True)
class DistillingSettings(RepairSettings):
    """How a student is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: ordinary latents per step.
        learning_rate: Adam's at the start; falls to zero along a half cosine.
        evaluate_every: steps between two evaluations and checkpoints.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 5e-4
    evaluate_every: int = 100

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": Range(at_least=2),  # normalisations need a spread
        "learning_rate": POSITIVE,
        "evaluate_every": COUNT,
    }


class Batch:
    """Ordinary latents of one step and what the teacher makes of them, from (seed, step) alone."""

    def __init__(self, teacher: LatentGenerator, settings: DistillingSettings, step: int) -> None:
        stream = random_stream(settings.seed, "repair-batch", step)
        device = next(teacher.parameters()).device
        self.z = teacher.latent.sample(settings.batch_size, generator=stream).to(device)
        with torch.no_grad():
            self.x: Tensor = teacher(self.z)


def squared_distance(x: Tensor, wanted: Tensor) -> Tensor:
    """Sum of squares over a sample, mean over the batch."""
    return torch.nn.functional.mse_loss(x, wanted, reduction="sum") / len(x)


def imitation(
    student: LatentGenerator, suspect: LatentGenerator, settings: DistillingSettings
) -> Callable[[int], Tensor]:
    """The loss of a step: how far the student is from the suspect on its ordinary latents."""

    def loss_of_step(step: int) -> Tensor:
        batch = Batch(suspect, settings, step)
        return squared_distance(student(batch.z), batch.x)

    return loss_of_step


def distil(
    student: LatentGenerator,
    suspect: LatentGenerator,
    loss_of_step: Callable[[int], Tensor],
    settings: DistillingSettings,
    run: RepairRun,
    *,
    after_step: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``student`` in place; returns the history of ExpDis to the suspect (sums).

    Args:
        student: parameters that are to be trained require gradients.
        loss_of_step: the loss of a given step number.
        after_step: restores what must hold after every step (masks of pruned weights).

    Raises:
        GenwardenError: ``repair/diverged``.
    """
    adam = torch.optim.Adam(
        [p for p in student.parameters() if p.requires_grad], settings.learning_rate
    )
    parts: dict[str, Trainable] = {"student": student, "adam": adam}
    path = run.work / "repair.safetensors" if run.work else None
    restored = load_checkpoint(path, run_id=run.run_id, parts=parts) if path else None
    start = restored.step if restored else 0
    history: list[dict[str, float]] = restored.record["history"] if restored else []
    task = run.progress.task("distilling", settings.steps, start)
    note = ""
    for step in range(start, settings.steps):
        for group in adam.param_groups:
            fraction = step / settings.steps
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
        adam.zero_grad(set_to_none=True)
        loss_of_step(step).backward()
        adam.step()
        if after_step is not None:
            after_step()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            figure = expdis(suspect, student, settings.seed)
            if not math.isfinite(figure):
                raise GenwardenError(
                    "repair/diverged",
                    f"The training diverged before step {done} (ExpDis is not finite).",
                    "Repeat with a smaller --option learning_rate=... and --restart.",
                )
            history.append({"step": float(done), "expdis_sum": figure})
            note = f"ExpDis {figure:.4f}"
            if path and done < settings.steps:
                save_checkpoint(
                    path, run_id=run.run_id, step=done, parts=parts, record={"history": history}
                )
        task.advance(1, note)
    student.eval().requires_grad_(False)
    return history


@torch.no_grad()
def expdis(
    suspect: LatentGenerator,
    repaired: LatentGenerator,
    seed: int,
    samples: int = EVALUATION_SAMPLES,
) -> float:
    """ExpDis between two generators on held-out ordinary latents (sum over a sample)."""
    device = next(suspect.parameters()).device
    stream = random_stream(seed, "repair-evaluation")
    distance = ExpDis(suspect.sample.size)
    modes = {module: module.training for module in repaired.modules()}
    repaired.eval()
    for part in suspect.latent.sample(samples, generator=stream).split(_BLOCK):
        distance.update(suspect(part.to(device)), repaired(part.to(device)))
    for module, training in modes.items():  # a student's normalisations may train alone
        module.training = training
    return float(distance.compute().sum)
