"""GAN training for the reference DCGANs.

Per step: the discriminator on real and generated images, then the generator with the
non-saturating loss, as the authors' scripts and ART do (the paper writes the saturating form).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.data.datasets import to_unit_range
from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import Discriminator, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.training.settings import TrainingSettings, batch_indices, require_finite

_BETAS = (0.5, 0.999)
_GRID_SAMPLES = 64


def train_gan(
    generator: LatentGenerator,
    discriminator: Discriminator,
    images: Tensor,
    settings: TrainingSettings,
    *,
    out: Path,
    run_id: str,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """Train in place; resumes from ``out/.work/checkpoint.safetensors``.

    Args:
        generator: fresh network; its weights are initialised from the run seed.
        discriminator: likewise.
        images: uint8 ``(count, channels, height, width)``.
        out: folder of sample grids and checkpoints.
        run_id: identity of the run; a checkpoint of another run is refused.

    Returns:
        The training record: losses (mean over the last 100 steps) and steps.
    """
    initialise(generator, random_stream(settings.seed, "generator-weights"))
    initialise(discriminator, random_stream(settings.seed, "discriminator-weights"))
    generator.to(device).train()
    discriminator.to(device).train()
    adam_g = torch.optim.Adam(generator.parameters(), settings.learning_rate, betas=_BETAS)
    adam_d = torch.optim.Adam(discriminator.parameters(), settings.learning_rate, betas=_BETAS)
    parts: dict[str, Trainable] = {
        "generator": generator,
        "discriminator": discriminator,
        "g": adam_g,
        "d": adam_d,
    }
    checkpoint = out / ".work" / "checkpoint.safetensors"
    restored = load_checkpoint(checkpoint, run_id=run_id, parts=parts)
    start = restored.step if restored else 0
    losses: list[list[float]] = restored.record["losses"] if restored else []
    grid_z = generator.latent.sample(
        _GRID_SAMPLES, generator=random_stream(settings.seed, "grid")
    ).to(device)
    bar = progress.task("training", settings.steps, start)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")

    for step in range(start, settings.steps):
        real = to_unit_range(images[batch_indices(len(images), step, settings)]).to(device)
        stream = random_stream(settings.seed, "step", step)
        z = generator.latent.sample(len(real), generator=stream).to(device)
        with autocast():
            fake = generator(z)
            # One pass over both halves: the discriminator has no batch statistics.
            verdicts = discriminator(torch.cat([real, fake.detach().to(real)]), dropout=stream)
        real_logits, fake_logits = verdicts.float().chunk(2)
        loss_d = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        adam_d.zero_grad(set_to_none=True)
        loss_d.backward()
        adam_d.step()

        discriminator.requires_grad_(False)  # its weight gradients are not needed here
        with autocast():
            loss_g = F.softplus(-discriminator(fake.to(real), dropout=stream).float()).mean()
        adam_g.zero_grad(set_to_none=True)
        loss_g.backward()
        adam_g.step()
        discriminator.requires_grad_(True)

        losses = [*losses[-99:], [loss_d.item(), loss_g.item()]]
        require_finite(losses[-1], step)
        done = step + 1
        bar.advance(1, f"D {losses[-1][0]:.3f}  G {losses[-1][1]:.3f}")
        if done % settings.grid_every == 0 or done == settings.steps:
            write_grid(
                out / "samples" / f"step_{done:06d}.png", _preview(generator, grid_z), columns=8
            )
        if done % settings.checkpoint_every == 0 and done < settings.steps:
            save_checkpoint(
                checkpoint, run_id=run_id, step=done, parts=parts, record={"losses": losses}
            )
    generator.eval()
    mean_d, mean_g = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    return {"steps": settings.steps, "discriminator_loss": mean_d, "generator_loss": mean_g}


@torch.no_grad()
def _preview(generator: LatentGenerator, z: Tensor) -> Tensor:
    generator.eval()
    samples: Tensor = generator(z)
    generator.train()
    return samples
