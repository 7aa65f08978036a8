"""``genwarden sample``: ordinary samples of a model as one picture, or as a sound file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.open_model import open_model
from genwarden.data.audio import spectrograms, write_wav
from genwarden.data.grids import write_grid
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.wavegan import WaveGAN


@torch.no_grad()
def sample_grid(
    model: Path,
    out: Path,
    *,
    count: int,
    columns: int,
    seed: int,
    architecture: str | None,
    settings: dict[str, Any],
) -> Path:
    """Draw ``count`` samples from the model's own latent law and write them as a PNG grid.

    Clips are written as one WAV file, one after another, if ``out`` ends in ``.wav``; otherwise
    the picture shows their spectrograms and the WAV file of the same name is written beside it.

    Raises:
        GenwardenError: ``sample/not-images`` for a WAV file of images and for audio models whose
            samples per second are not known, and those of opening a model.
    """
    generator = open_model(model, architecture=architecture, settings=settings).generator
    audible = isinstance(generator, WaveGAN)
    sound = out.suffix.lower() == ".wav"
    if audible is not (generator.sample.modality == "audio") or (sound and not audible):
        raise GenwardenError(
            "sample/not-images",
            f"{model} makes {generator.sample.modality} that cannot be written as {out.name}.",
            "Image models are drawn as PNG, WaveGANs also as WAV.",
            ExitCode.INCONCLUSIVE,
        )
    z = generator.latent.sample(count, generator=random_stream(seed, "sample"))
    samples = torch.cat([generator(part) for part in z.split(256)])
    if isinstance(generator, WaveGAN):
        write_wav(out.with_suffix(".wav"), samples, generator.sample_rate)
        samples = spectrograms(samples)
    if not sound:
        write_grid(out, samples, columns=columns)
    return out
