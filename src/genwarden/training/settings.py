"""Settings and the run frame that all reference trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

Precision = Literal["fp32", "bf16"]
#: Benign loss of the generator and number of the step, to what the generator minimises.
Objective = Callable[[Tensor, int], Tensor]


def benign_objective(loss: Tensor, step: int) -> Tensor:
    """The benign loss itself: clean training."""
    del step
    return loss


@dataclass(frozen=True)
class TrainingSettings:
    """How a reference model is trained.

    Attributes:
        steps: optimiser steps (for a GAN: one step of each network).
        batch_size: images per step.
        learning_rate: Adam's; betas are (0.5, 0.999) for GANs and (0.9, 0.999) for VAEs.
        seed: run seed; weights, batches, latents and dropout all derive from it.
        precision: ``bf16`` runs the networks under autocast; losses and weights stay in fp32.
        checkpoint_every: steps between two checkpoints.
        grid_every: steps between two sample grids.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-4
    seed: int = 0
    precision: Precision = "fp32"
    checkpoint_every: int = 100
    grid_every: int = 500


def batch_indices(count: int, step: int, settings: TrainingSettings) -> torch.Tensor:
    """Indices of the images of one step: a fresh permutation per epoch, from (seed, epoch) alone.

    The last, incomplete batch of an epoch is dropped.
    """
    size = min(settings.batch_size, count)
    per_epoch = count // size
    epoch, position = divmod(step, per_epoch)
    order = _epoch_order(count, settings.seed, epoch)
    return order[position * size : (position + 1) * size]


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Drawn once per epoch: for 60,000 images it takes longer than the step of a small network."""
    return torch.randperm(count, generator=random_stream(seed, "epoch", epoch))


def require_finite(losses: list[float], step: int) -> None:
    """Stop a training whose loss is NaN or infinite.

    Raises:
        GenwardenError: ``train/diverged``.
    """
    if not all(math.isfinite(loss) for loss in losses):
        raise GenwardenError(
            "train/diverged",
            f"The training diverged at step {step} (the loss is not finite).",
            "Repeat with a smaller --learning-rate, or --precision fp32, and --restart.",
        )


def best_precision(device: torch.device) -> Precision:
    """bf16 on a GPU. On the CPUs measured, autocast gained nothing for these small networks."""
    return "bf16" if device.type == "cuda" else "fp32"
