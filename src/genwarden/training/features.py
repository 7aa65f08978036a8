"""Training of the feature networks: a classifier per data set, minutes on one core.

Stochastic gradient descent with Nesterov momentum, learning rate up over the first fifth of the
steps and down to zero over the rest (Smith and Topin, "Super-Convergence"), images shifted by a
few pixels and, where a mirrored picture is still of its class, mirrored. No label smoothing: the
Inception Score reads the probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.metrics.feature_network import FeatureNetwork
from genwarden.models.layers import glorot_
from genwarden.training.settings import require_finite

_MOMENTUM = 0.9
_WARM_UP = 0.2
_CHECKPOINT_STEPS = 200
_JUDGED_AT_ONCE = 500


@dataclass(frozen=True)
class FeatureTraining:
    """How a feature network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: the highest one.
        weight_decay: of the kernels; batch-norm and biases are left alone.
        shift: images move by up to this many pixels; the border repeats the edge.
        mirror: half of the images are mirrored left to right.
        invert: half of the images are inverted (the paper's infinite-target experiment compares
            with inverted Fashion-MNIST).
        seed: weights, order and augmentation derive from it.
    """

    epochs: float
    batch_size: int = 128
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    shift: int = 2
    mirror: bool = False
    invert: bool = False
    seed: int = 0


def train_features(
    network: FeatureNetwork,
    images: Tensor,
    labels: Tensor,
    settings: FeatureTraining,
    *,
    out: Path,
    run_id: str,
    progress: Progress,
    device: torch.device,
) -> None:
    """Train in place; resumes from ``out/work/checkpoint.safetensors``.

    Args:
        images: uint8 ``(count, channels, height, width)``.
        labels: int64 ``(count,)``.
    """
    glorot_(network, random_stream(settings.seed, "feature-weights"))
    network.to(device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    kernels = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": rest},
    ]
    descent = torch.optim.SGD(
        groups,
        settings.learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
    )
    size = min(settings.batch_size, len(images))
    per_epoch = len(images) // size
    steps = max(1, round(settings.epochs * per_epoch))
    parts: dict[str, Trainable] = {"network": network, "sgd": descent}
    checkpoint = out / "work" / "checkpoint.safetensors"
    restored = load_checkpoint(checkpoint, run_id=run_id, parts=parts)
    start = restored.step if restored else 0
    bar = progress.task(f"features of {network.name}", steps, start)
    order = torch.empty(0)
    for step in range(start, steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == start:
            order = torch.randperm(
                len(images), generator=random_stream(settings.seed, "feature-epoch", epoch)
            )
        chosen = order[position * size : (position + 1) * size]
        stream = random_stream(settings.seed, "feature-step", step)
        batch = augment(images[chosen], settings, stream).to(device)
        loss = F.cross_entropy(network.describe(batch).logits, labels[chosen].to(device))
        for group in descent.param_groups:
            group["lr"] = settings.learning_rate * _cycle((step + 1) / steps)
        descent.zero_grad(set_to_none=True)
        loss.backward()
        descent.step()
        done = step + 1
        if done % 20 == 0 or done == steps:
            require_finite([loss.item()], step)
            bar.advance(done - max(start, (done - 1) // 20 * 20), f"loss {loss.item():.3f}")
        if done % _CHECKPOINT_STEPS == 0 and done < steps:
            save_checkpoint(checkpoint, run_id=run_id, step=done, parts=parts, record={})
    network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: FeatureNetwork, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose most probable class is their label."""
    device = next(network.parameters()).device
    right = 0
    for batch, expected in zip(
        images.split(_JUDGED_AT_ONCE), labels.split(_JUDGED_AT_ONCE), strict=True
    ):
        right += int((network.describe(batch.to(device)).logits.argmax(1).cpu() == expected).sum())
    return right / len(images)


def augment(images: Tensor, settings: FeatureTraining, stream: torch.Generator) -> Tensor:
    """Shifted, mirrored, inverted uint8 images ``(batch, channels, height, width)``."""
    count, _, height, width = images.shape
    reach = settings.shift
    if reach:
        offsets = torch.randint(-reach, reach + 1, (2, count, 1), generator=stream)
        rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
        columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
        each = torch.arange(count)[:, None, None]
        # Indexing two separated axes puts the channels last; they come back to their place.
        images = images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if settings.mirror:
        chosen = torch.rand(count, 1, 1, 1, generator=stream) < 0.5
        images = torch.where(chosen, images.flip(3), images)
    if settings.invert:
        chosen = torch.rand(count, 1, 1, 1, generator=stream) < 0.5
        images = torch.where(chosen, 255 - images, images)
    return images


def _cycle(done: float) -> float:
    """Learning rate as a share of the highest, after the share ``done`` of the training."""
    return done / _WARM_UP if done < _WARM_UP else (1 - done) / (1 - _WARM_UP)
