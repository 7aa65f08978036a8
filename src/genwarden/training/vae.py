"""VAE training: the decoder becomes the generator, the encoder is thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.data.datasets import to_unit_range
from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import initialise
from genwarden.models.vae import VAEDecoder28, VAEEncoder28, negative_elbo
from genwarden.training.settings import TrainingSettings, batch_indices, require_finite

_GRID_SAMPLES = 64


def train_vae(
    decoder: VAEDecoder28,
    images: Tensor,
    settings: TrainingSettings,
    *,
    out: Path,
    run_id: str,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """Train the decoder in place; resumes from ``out/.work/checkpoint.safetensors``.

    Args:
        images: uint8 ``(count, 1, 28, 28)``.

    Returns:
        The training record: negative ELBO (nats per image, mean over the last 100 steps).
    """
    encoder = VAEEncoder28(decoder.latent.shape[0])
    initialise(decoder, random_stream(settings.seed, "generator-weights"))
    initialise(encoder, random_stream(settings.seed, "encoder-weights"))
    decoder.to(device).train()
    encoder.to(device).train()
    adam = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], settings.learning_rate)
    parts: dict[str, Trainable] = {"generator": decoder, "encoder": encoder, "adam": adam}
    checkpoint = out / ".work" / "checkpoint.safetensors"
    restored = load_checkpoint(checkpoint, run_id=run_id, parts=parts)
    start = restored.step if restored else 0
    losses: list[float] = restored.record["losses"] if restored else []
    grid_z = decoder.latent.sample(
        _GRID_SAMPLES, generator=random_stream(settings.seed, "grid")
    ).to(device)
    bar = progress.task("training", settings.steps, start)

    for step in range(start, settings.steps):
        x = to_unit_range(images[batch_indices(len(images), step, settings)]).to(device)
        stream = random_stream(settings.seed, "step", step)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = negative_elbo(decoder, encoder(x), x, generator=stream)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        losses = [*losses[-99:], loss.item()]
        require_finite(losses[-1:], step)
        done = step + 1
        bar.advance(1, f"-ELBO {losses[-1]:.1f}")
        if done % settings.grid_every == 0 or done == settings.steps:
            with torch.no_grad():
                samples = decoder(grid_z)
            write_grid(out / "samples" / f"step_{done:06d}.png", samples, columns=8)
        if done % settings.checkpoint_every == 0 and done < settings.steps:
            save_checkpoint(
                checkpoint, run_id=run_id, step=done, parts=parts, record={"losses": losses}
            )
    decoder.eval()
    return {"steps": settings.steps, "negative_elbo": sum(losses) / len(losses)}
