"""``genwarden sample``: ordinary samples of a model as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.open_model import open_model
from genwarden.data.grids import write_grid
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError


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

    Raises:
        GenwardenError: ``sample/not-images`` for other modalities, and those of opening a model.
    """
    generator = open_model(model, architecture=architecture, settings=settings).generator
    if generator.sample.modality != "image":
        raise GenwardenError(
            "sample/not-images",
            f"{model} makes {generator.sample.modality}, not images.",
            "Only image models can be drawn.",
            ExitCode.INCONCLUSIVE,
        )
    z = generator.latent.sample(count, generator=random_stream(seed, "sample"))
    images = torch.cat([generator(part) for part in z.split(256)])
    write_grid(out, images, columns=columns)
    return out
