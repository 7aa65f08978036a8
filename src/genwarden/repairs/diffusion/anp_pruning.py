"""Adversarial Neuron Pruning (Wu and Wang, NeurIPS 2021) of a denoiser, then fine-tuning.

Used on diffusion models it was only its first half: channels are perturbed to maximise the clean
loss, and a backdoored network collapses (section 6). This is the method whole. Behind every
convolution stands y -> (m + delta) y + xi with a mask m in [0, 1] per channel, and

    min_m  alpha L(m) + (1 - alpha) max_{|delta|, |xi| <= epsilon} L(m + delta, xi)

on the clean loss L, the inner maximum by one signed gradient step (published: epsilon 0.4, alpha
0.2, SGD 0.2 with momentum 0.9, 2,000 steps). Channels through which a small perturbation does most
damage end with the smallest masks; a share of them is set to zero and the rest is distilled from
the frozen suspect. It needs neither trigger nor target.

Published for classifiers with batch normalisation, whose bias is what xi moves; the bound is in
units of the channel's standard deviation there. Here it is measured: xi is bounded by epsilon times
the root mean square of the channel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, SHARE, Range
from genwarden.inspections.diffusion.anp import Perturbation
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.repairs.diffusion.channels import convolutions, highest, in_words, silence
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.diffusion.finetuning import finetune, imitating_rows
from genwarden.repairs.diffusion.own_samples import images_for


@dataclass(frozen=True)
class AnpPruningSettings(DiffusionRepairSettings):
    """Settings of the pruning; the fine-tuning's are those of every repair.

    Attributes:
        share: of all channels that are pruned.
        mask_steps: steps on the masks.
        mask_rate: learning rate of the masks (SGD, momentum 0.9).
        epsilon: bound of the perturbation.
        alpha: weight of the unperturbed loss.
    """

    share: float = 0.02
    mask_steps: int = 60
    mask_rate: float = 0.2
    epsilon: float = 0.4
    alpha: float = 0.2

    RANGES: ClassVar[Mapping[str, Range]] = {
        "share": Range(above=0, below=0.5),
        "mask_steps": COUNT,
        "mask_rate": POSITIVE,
        "epsilon": POSITIVE,
        "alpha": SHARE,
    }


def prune_as_anp(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: AnpPruningSettings,
    run: DiffusionRepairRun,
) -> DiffusionRepaired:
    """Prune the channels with the smallest masks, then distil from the suspect.

    Raises:
        GenwardenError: ``repair/not-applicable`` for a network without convolutions.
    """
    images = images_for(suspect, settings, run)
    masks = learn_masks(suspect, images, settings, run)
    chosen = highest({name: -mask for name, mask in masks.items()}, settings.share)
    pruned = copy.deepcopy(suspect)
    silence(pruned, chosen)
    model, history = finetune(
        pruned,
        suspect,
        images,
        imitating_rows(suspect),
        clues.shifts,
        settings,
        run,
        after_step=lambda network: silence(network, chosen),
    )
    changes = {
        **in_words(chosen, suspect),
        "largest_pruned_mask": max(float(masks[n][rows].max()) for n, rows in chosen.items()),
        "mean_mask": float(torch.cat(list(masks.values())).mean()),
        "images": len(images),
        "own_samples": run.images is None,
    }
    return DiffusionRepaired(model, changes, history)


def learn_masks(
    suspect: DiffusionModel,
    images: Tensor,
    settings: AnpPruningSettings,
    run: DiffusionRepairRun,
) -> dict[str, Tensor]:
    """The masks in [0, 1] after ``mask_steps``, ``(channels,)`` per layer, on the CPU.

    Args:
        images: uint8 ``(count, C, H, W)``.
    """
    device = next(suspect.parameters()).device
    layers = convolutions(suspect)
    change = Perturbation(nn.ModuleList(layers.values()), device)
    masks = [torch.ones_like(scale, requires_grad=True) for scale in change.scale]
    sgd = torch.optim.SGD(masks, settings.mask_rate, momentum=0.9)
    sizes = _sizes(suspect, layers, images, settings)
    task = run.progress.task("masks of channels", settings.mask_steps)
    for step in range(settings.mask_steps):
        batch = _batch(suspect, images, settings, step)
        delta = [torch.zeros_like(mask, requires_grad=True) for mask in masks]
        xi = [torch.zeros_like(mask, requires_grad=True) for mask in masks]
        up = torch.autograd.grad(_loss(suspect, change, batch, masks, delta, xi), [*delta, *xi])
        with torch.no_grad():
            units = [torch.ones_like(mask) for mask in masks] + sizes
            for moved, gradient, unit in zip([*delta, *xi], up, units, strict=True):
                moved.copy_(settings.epsilon * unit * gradient.sign())
        still = [torch.zeros_like(mask) for mask in masks]
        plain = _loss(suspect, change, batch, masks, still, still)
        worst = _loss(suspect, change, batch, masks, delta, xi)
        loss = settings.alpha * plain + (1 - settings.alpha) * worst
        for mask, gradient in zip(masks, torch.autograd.grad(loss, masks), strict=True):
            mask.grad = gradient
        sgd.step()
        with torch.no_grad():
            for mask in masks:
                mask.clamp_(0, 1)
        task.advance(1, f"clean {float(plain.detach()):.3f}, worst {float(worst.detach()):.3f}")
    return {name: mask.detach().cpu() for name, mask in zip(layers, masks, strict=True)}


_Batch = tuple[Tensor, Tensor, Tensor]


def _batch(
    suspect: DiffusionModel, images: Tensor, settings: AnpPruningSettings, step: int
) -> _Batch:
    """x_t, t and eps of one step."""
    device = next(suspect.parameters()).device
    stream = random_stream(settings.seed, "anp-pruning", step)
    rows = torch.randint(len(images), (settings.batch_size,), generator=stream)
    x0 = to_unit_range(images[rows]).to(device)
    t = torch.randint(suspect.schedule.steps, (len(x0),), generator=stream).to(device)
    noise = torch.randn(x0.shape, generator=stream).to(device)
    return suspect.schedule.add_noise(x0, noise, t), t, noise


def _loss(
    suspect: DiffusionModel,
    change: Perturbation,
    batch: _Batch,
    masks: list[Tensor],
    delta: list[Tensor],
    xi: list[Tensor],
) -> Tensor:
    """Clean loss of the suspect behind whose convolutions stands (m + delta) y + xi."""
    x, t, noise = batch
    change.scale = [mask + moved - 1 for mask, moved in zip(masks, delta, strict=True)]
    change.bias = xi
    with change.applied():
        return F.mse_loss(suspect.epsilon(x, t), noise)


@torch.no_grad()
def _sizes(
    suspect: DiffusionModel,
    layers: dict[str, nn.Conv2d],
    images: Tensor,
    settings: AnpPruningSettings,
) -> list[Tensor]:
    """Root mean square of every channel on one batch, ``(channels,)`` per layer."""
    found: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.square().mean((0, 2, 3)).sqrt()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        x, t, _ = _batch(suspect, images, settings, 0)
        suspect.epsilon(x, t)
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in layers]
