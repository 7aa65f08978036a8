"""The loop of all repairs of classifiers: batches from (seed, step) alone, checkpoints, history."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from genwarden.data.datasets import to_unit_range
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.repairs.classifier.contract import ClassifierRepairSettings, LabelledData
from genwarden.repairs.contract import RepairRun
from genwarden.training.classifier import augmented

_CHECKPOINT: Final = "repair.safetensors"
#: Images in [-1, 1], classes and step to the loss.
LossOfStep = Callable[[Tensor, Tensor, int], Tensor]


def train(
    student: ImageClassifier,
    optimiser: Optimizer,
    loss_of: LossOfStep,
    data: LabelledData,
    settings: ClassifierRepairSettings,
    run: RepairRun,
    *,
    title: str,
    rate: Callable[[int], float] | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Train in place; returns the history. Resumes from the run's folder, bit for bit.

    Args:
        student: is left in evaluation mode, frozen.
        rate: learning rate of a step; the optimiser's own if None.
        after_step: restores what must hold after every step.

    Raises:
        GenwardenError: ``repair/diverged``.
    """
    parts: dict[str, Trainable] = {"student": student, "optimiser": optimiser}
    checkpoint = run.work / _CHECKPOINT if run.work else None
    restored = load_checkpoint(checkpoint, run_id=run.run_id, parts=parts) if checkpoint else None
    begin = restored.step if restored else 0
    history: list[dict[str, float]] = restored.record["history"] if restored else []
    device = next(student.parameters()).device
    bar = run.progress.task(title, settings.steps, begin)
    since: list[float] = []
    student.train().requires_grad_(True)
    for step in range(begin, settings.steps):
        if rate is not None:
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
        x, y = _batch(data, settings, step)
        loss = loss_of(x.to(device), y.to(device), step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if after_step is not None:
            with torch.no_grad():
                after_step()
        since.append(loss.item())
        if not math.isfinite(since[-1]):
            raise GenwardenError(
                "repair/diverged",
                f"The repair diverged at step {step + 1}.",
                "Repeat with a smaller --option learning_rate.",
            )
        bar.advance(1, f"loss {since[-1]:.3g}")
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            history.append({"step": float(done), "loss": sum(since) / len(since)})
            since = []
            if checkpoint:
                save_checkpoint(
                    checkpoint,
                    run_id=run.run_id,
                    step=done,
                    parts=parts,
                    record={"history": history},
                )
    student.eval().requires_grad_(False)
    return history


def _batch(
    data: LabelledData, settings: ClassifierRepairSettings, step: int
) -> tuple[Tensor, Tensor]:
    stream = random_stream(settings.seed, "repair-batch", step)
    count = min(settings.batch_size, len(data.images))
    chosen = torch.randperm(len(data.images), generator=stream)[:count]
    x = to_unit_range(data.images[chosen])
    return augmented(x, stream, crop=settings.crop, flip=False), data.labels[chosen]
