"""Images to repair with: the user's, or the suspect's own samples from plain noise.

A backdoored diffusion model draws ordinary images from ordinary noise, so its own samples are
nearly as good as its data (Diff-Cleanse, section 11.3 of the reference: synthetic data is enough).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genwarden.data.datasets import to_bytes
from genwarden.engine.files import sha256_bytes, write_tensors
from genwarden.engine.fingerprint import fingerprint_of
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.repairs.diffusion.contract import DiffusionRepairRun, DiffusionRepairSettings

#: Samples per forward pass; part of what a seed means.
_BLOCK = 64


def images_for(
    suspect: DiffusionModel, settings: DiffusionRepairSettings, run: DiffusionRepairRun
) -> Tensor:
    """uint8 ``(count, C, H, W)``: the user's images, or ``settings.own_samples`` drawn ones.

    Drawn ones are kept in ``run.work`` and found there by a resumed run.

    Raises:
        GenwardenError: ``repair/data-shape``, ``repair/not-finite``.
    """
    if run.images is not None:
        if run.images.dtype != torch.uint8 or run.images.shape[1:] != suspect.sample.shape:
            raise GenwardenError(
                "repair/data-shape",
                f"The images are {run.images.dtype} {tuple(run.images.shape[1:])}, the model's "
                f"are {suspect.sample.shape}.",
                "Give uint8 images of the model's shape.",
            )
        return run.images
    path = run.work and run.work / f"samples-{_of_these_weights(suspect, settings)}.safetensors"
    kept = _kept(path, (settings.own_samples, *suspect.sample.shape))
    if kept is not None:
        return kept
    drawn = draw_own(suspect, settings, run)
    if path is not None:
        write_tensors(path, {"samples": drawn})
    return drawn


@torch.no_grad()
def draw_own(
    suspect: DiffusionModel, settings: DiffusionRepairSettings, run: DiffusionRepairRun
) -> Tensor:
    """Samples of the suspect, uint8 ``(own_samples, C, H, W)``: DDIM, eta 0, x0-hat unclipped.

    Raises:
        GenwardenError: ``repair/not-finite``.
    """
    device = next(suspect.parameters()).device
    steps = min(settings.sampler_steps, suspect.schedule.steps)
    sampler = SamplerSettings("ddim", steps)
    shape = (settings.own_samples, *suspect.sample.shape)
    noise = torch.randn(shape, generator=random_stream(settings.seed, "own-samples"))
    task = run.progress.task("own samples", len(noise))
    drawn = []
    for part in noise.split(_BLOCK):
        made = sample(suspect, part.to(device), sampler)
        if not bool(made.isfinite().all()):
            raise GenwardenError(
                "repair/not-finite",
                "The suspect's own samples hold NaN or infinite values.",
                "Give images of your own with --data.",
            )
        drawn.append(to_bytes(made.clamp(-1, 1)).cpu())
        task.advance(len(part))
    return torch.cat(drawn)


def _of_these_weights(suspect: DiffusionModel, settings: DiffusionRepairSettings) -> str:
    """Short name of all that the samples depend on: a second round draws from another network."""
    wish = (settings.seed, settings.own_samples, settings.sampler_steps, fingerprint_of(suspect))
    return sha256_bytes(repr(wish).encode())[:16]


def _kept(path: Path | None, shape: tuple[int, ...]) -> Tensor | None:
    """Samples of an earlier start; None if there are none, or not whole ones."""
    if path is None or not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            samples: Tensor = handle.get_tensor("samples")
    except (SafetensorError, OSError, ValueError):
        return None
    return samples if samples.shape == shape and samples.dtype == torch.uint8 else None
