"""What a dormant backdoor in a generator is worth: distances and utilities, full and compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from genwarden.backdoors.backdoor import Backdoor
from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.engine.seeds import random_stream
from genwarden.metrics.distances import expdis, tardis
from genwarden.models.protocol import LatentGenerator

_SAMPLES: Final = 2048


def twin(generator: LatentGenerator, compressor: Compressor) -> LatentGenerator:
    """The generator as a user gets it who compresses it; batch norm is folded where asked."""
    device = next(generator.parameters()).device
    z = generator.latent.sample(2, generator=random_stream(0, "dormancy-layout")).to(device)
    return compress(generator, compressor, lambda network: network(z))[0].requires_grad_(False)


@torch.no_grad()
def measure_dormancy(
    clean: LatentGenerator,
    suspect: LatentGenerator,
    backdoor: Backdoor,
    compressors: Sequence[Compressor],
) -> dict[str, Any]:
    """All are means of squares per element.

    Returns:
        ``clean_distance``, ``full_distance``: to the target at the triggers. ``kept``: the second
        over the first. ``full_utility``: change on ordinary latents. Per compressor under
        ``compressed``: ``distance``, ``utility``, and what the clean model has under it.
    """
    z, x = backdoor.examples
    at_clean, at_full = tardis(clean, z, x).mean, tardis(suspect, z, x).mean
    found: dict[str, Any] = {}
    for compressor in compressors:
        small, clean_small = twin(suspect, compressor), twin(clean, compressor)
        found[compressor.name] = {
            "distance": tardis(small, z, x).mean,
            "utility": expdis(clean, small, samples=_SAMPLES).mean,
            "clean_distance": tardis(clean_small, z, x).mean,
            "clean_utility": expdis(clean, clean_small, samples=_SAMPLES).mean,
        }
    return {
        "clean_distance": at_clean,
        "full_distance": at_full,
        "kept": at_full / at_clean if at_clean else 0.0,
        "full_utility": expdis(clean, suspect, samples=_SAMPLES).mean,
        "compressed": found,
    }
