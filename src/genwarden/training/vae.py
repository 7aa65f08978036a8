"""VAE training: the decoder becomes the generator, the encoder is thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import initialise
from genwarden.models.vae import VAEDecoder28, VAEEncoder28, negative_elbo
from genwarden.training.frame import Frame
from genwarden.training.settings import Objective, TrainingSettings, benign_objective

_GRID_SAMPLES = 64


class VaeLearner:
    """Encoder and decoder on the negative ELBO.

    Args:
        decoder: fresh network; its weights are initialised from the run seed.
        objective: turns the negative ELBO of a step into what is minimised.
    """

    def __init__(
        self,
        decoder: VAEDecoder28,
        settings: TrainingSettings,
        device: torch.device,
        objective: Objective = benign_objective,
    ) -> None:
        encoder = VAEEncoder28(decoder.latent.shape[0])
        initialise(decoder, random_stream(settings.seed, "generator-weights"))
        initialise(encoder, random_stream(settings.seed, "encoder-weights"))
        self.generator = decoder.to(device).train()
        self.encoder = encoder.to(device).train()
        self.objective = objective
        self.adam = torch.optim.Adam(
            [*decoder.parameters(), *encoder.parameters()], settings.learning_rate
        )
        self._bf16 = settings.precision == "bf16"

    @property
    def parts(self) -> dict[str, Trainable]:
        """Both networks and their optimiser."""
        return {"generator": self.generator, "encoder": self.encoder, "adam": self.adam}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One step of both networks; returns the negative ELBO (nats per image)."""
        with torch.autocast(real.device.type, torch.bfloat16, enabled=self._bf16):
            loss = negative_elbo(self.generator, self.encoder(real), real, generator=stream)
        self.adam.zero_grad(set_to_none=True)
        self.objective(loss, step).backward()
        self.adam.step()
        return [loss.item()]

    def describe(self, losses: list[float]) -> str:
        """Negative ELBO."""
        return f"-ELBO {losses[0]:.1f}"


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
    learner = VaeLearner(decoder, settings, device)
    grid_z = decoder.latent.sample(
        _GRID_SAMPLES, generator=random_stream(settings.seed, "grid")
    ).to(device)

    def show(done: int) -> bool:
        if done % settings.grid_every == 0 or done == settings.steps:
            with torch.no_grad():
                samples = decoder(grid_z)
            write_grid(out / "samples" / f"step_{done:06d}.png", samples, columns=8)
        return False

    checkpoint = out / ".work" / "checkpoint.safetensors"
    frame = Frame(learner, settings, checkpoint, run_id, progress, between=show)
    frame.run(images, device)
    decoder.eval()
    (mean,) = frame.mean_losses()
    return {"steps": settings.steps, "negative_elbo": mean}
