"""Ordinary samples of a generator in fixed, seeded blocks: what every sampled metric runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genwarden.engine.blocks import blocks
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Latents per block. A block's latents follow from (seed, purpose, number of the block) alone, so
#: this is part of what a seed means and no setting.
BLOCK_SAMPLES = 1000

#: Draws ``count`` latents from a stream: ``draw(count, stream) -> (count, *latent.shape)``.
LatentDraw = Callable[[int, torch.Generator], Tensor]


class Drawn(NamedTuple):
    """Latents ``(batch, *latent.shape)`` on the CPU, their samples on the generator's device."""

    z: Tensor
    x: Tensor


def ordinary_latents(
    generator: LatentGenerator,
    samples: int,
    *,
    seed: int,
    purpose: str,
    draw: LatentDraw | None = None,
    batch: int = 250,
) -> Iterator[Tensor]:
    """Latents of the model's own law, or of ``draw``, in parts of at most ``batch``.

    Raises:
        GenwardenError: ``metric/too-few-samples`` if there is nothing to draw.
    """
    if samples < 1 or batch < 1:
        raise GenwardenError(
            "metric/too-few-samples",
            f"Nothing can be measured with {samples} samples in batches of {batch}.",
            "Ask for at least one sample.",
        )
    for block in blocks(samples, BLOCK_SAMPLES):
        stream = random_stream(seed, purpose, block.number)
        if draw is None:
            z = generator.latent.sample(block.size, generator=stream)
        else:
            z = draw(block.size, stream)
        yield from z.split(batch)


@torch.no_grad()
def ordinary_samples(
    generator: LatentGenerator,
    samples: int,
    *,
    seed: int,
    purpose: str,
    draw: LatentDraw | None = None,
    batch: int = 250,
) -> Iterator[Drawn]:
    """Samples of the model's own law, or of the latents that ``draw`` gives.

    Args:
        generator: in evaluation mode; samples stay on its device.
        purpose: name of the random stream; two metrics that name different ones never share a
            latent.
        batch: samples per forward pass; changes the time and the last bits, not the latents.

    Raises:
        GenwardenError: ``metric/not-finite`` if the model yields NaN or infinity.
    """
    device = device_of(generator)
    for z in ordinary_latents(
        generator, samples, seed=seed, purpose=purpose, draw=draw, batch=batch
    ):
        x = generator(z.to(device))
        if not bool(x.isfinite().all()):
            raise GenwardenError(
                "metric/not-finite",
                "The model yields NaN or infinity for ordinary latents.",
                "Its weights are damaged or its training diverged; no distance can be measured.",
            )
        yield Drawn(z, x)


def device_of(network: nn.Module) -> torch.device:
    """Where the weights of a network lie."""
    return next(network.parameters()).device
