"""Pruning after Diff-Cleanse (Hao et al. 2024; section 11.3 of the BadDiffusion reference).

A channel's Taylor importance for a loss L is the sum of |w dL/dw| over its weights, a first-order
estimate of what its removal changes. It is accumulated over t in [0.9 T, T) for inputs with the
recovered shift and for plain ones; channels whose difference (shifted - plain) is highest serve the
shift alone. 1 to 3 % of all channels are pruned, set to zero, and the rest is distilled from the
frozen suspect on its own samples with a moving average (published: 10,000 steps at 1e-4).

L is the error of the training law, ||eps_theta(a x_0 + s eps + rho d, t) - (eps + (rho/s) d)||^2
with rho = 1 - a; for d = 0 it is DDPM's own. Importances are divided by their layer's mean for
plain inputs, so that layers of different size compare; the authors' code leaves that to its pruning
library.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, Range
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.repairs.diffusion.channels import convolutions, highest, in_words, silence
from genwarden.repairs.diffusion.contract import (
    PART,
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.diffusion.finetuning import finetune, imitating_rows, late_timesteps
from genwarden.repairs.diffusion.own_samples import images_for
from genwarden.repairs.diffusion.shift_unlearning import rho_over_s


@dataclass(frozen=True)
class DiffCleanseSettings(DiffusionRepairSettings):
    """Settings of the pruning.

    Attributes:
        share: of all channels that are pruned; published 0.01 to 0.03.
        late_from: start of the timesteps of the importance as a share of T.
        batches: over which the importance is accumulated.
    """

    learning_rate: float = 1e-4
    share: float = 0.02
    late_from: float = 0.9
    batches: int = 20

    RANGES: ClassVar[Mapping[str, Range]] = {
        "share": Range(above=0, below=0.5),
        "late_from": PART,
        "batches": COUNT,
    }


def prune_as_diff_cleanse(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: DiffCleanseSettings,
    run: DiffusionRepairRun,
) -> DiffusionRepaired:
    """Prune the channels that a recovered shift needs most, then distil.

    Raises:
        GenwardenError: ``repair/not-applicable`` without recovered shifts or convolutions.
    """
    directions = clues.directions()
    images = images_for(suspect, settings, run)
    chosen = highest(taylor_difference(suspect, directions[0], images, settings), settings.share)
    pruned = copy.deepcopy(suspect)
    silence(pruned, chosen)
    model, history = finetune(
        pruned,
        suspect,
        images,
        imitating_rows(suspect),
        directions,
        settings,
        run,
        after_step=lambda network: silence(network, chosen),
    )
    changes = {
        **in_words(chosen, suspect),
        "images": len(images),
        "own_samples": run.images is None,
    }
    return DiffusionRepaired(model, changes, history)


def taylor_difference(
    suspect: DiffusionModel, shift: Tensor, images: Tensor, settings: DiffCleanseSettings
) -> dict[str, Tensor]:
    """Importance for inputs with ``shift`` ``(C, H, W)`` minus that for plain ones, per layer.

    Args:
        images: uint8 ``(count, C, H, W)``.
    """
    network = copy.deepcopy(suspect).requires_grad_(True)
    layers = convolutions(network)
    device = next(suspect.parameters()).device
    schedule = suspect.schedule
    totals = {}
    for d in (shift, torch.zeros_like(shift)):
        total = {name: torch.zeros(layer.out_channels) for name, layer in layers.items()}
        for number in range(settings.batches):
            stream = random_stream(settings.seed, "taylor", number)  # the same for both
            rows = torch.randint(len(images), (settings.batch_size,), generator=stream)
            x0 = to_unit_range(images[rows]).to(device)
            t = late_timesteps(schedule, settings.late_from, len(x0), stream).to(device)
            noise = torch.randn(x0.shape, generator=stream).to(device)
            ratio = rho_over_s(schedule, t, 0).to(x0).view(-1, 1, 1, 1)
            noise = noise + ratio * d.to(device)
            loss = F.mse_loss(network.epsilon(schedule.add_noise(x0, noise, t), t), noise)
            weights = [layer.weight for layer in layers.values()]
            gradients = torch.autograd.grad(loss, weights)
            for name, weight, gradient in zip(total, weights, gradients, strict=True):
                total[name] += (weight * gradient).detach().abs().flatten(1).sum(1).cpu()
        totals[d is shift] = total
    shifted, plain = totals[True], totals[False]
    return {n: (shifted[n] - plain[n]) / plain[n].mean().clamp(min=1e-12) for n in plain}
