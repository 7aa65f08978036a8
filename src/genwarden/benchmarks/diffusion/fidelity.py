"""FID and KID of a diffusion model's ordinary samples against its data.

The feature networks take 28x28 grey or 32x32 colour images: both sides, data and samples, are
resized bilinearly to that where the model is smaller. Such a value says nothing beside one at full
size; it compares models of one recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.attacks.diffusion.evaluation import triggered_samples
from genwarden.benchmarks.diffusion.workshop import Subject, Workshop
from genwarden.data.datasets import to_bytes
from genwarden.engine.files import sha256_bytes
from genwarden.metrics.feature_network import SHIPPED, read_feature_network
from genwarden.metrics.quality import compare, describe_real, require_enough
from genwarden.models.diffusion.samplers import SamplerSettings

#: Sampler of every FID: deterministic DDIM without clipping.
FID_STEPS = 50


def fidelity(shop: Workshop, subject: Subject) -> dict[str, Any]:
    """FID and KID over the scale's noise seeds, with everything that they depend on."""
    scale = shop.scale
    features = read_feature_network(SHIPPED / scale.features, device=shop.device)
    side = features.sample_shape[-1]
    images = resized(shop.images(scale.fid_images), side)
    real = describe_real(images, features, work=shop.models / "features")
    require_enough(scale.fid_samples, features, "Asked for were")
    model = shop.read(subject).model
    settings = SamplerSettings("ddim", scale.steps(FID_STEPS))
    rows = []
    for number in range(scale.noise_seeds):
        drawn = triggered_samples(model, None, settings, count=scale.fid_samples, seed=number)
        with torch.no_grad():
            parts = [
                features.describe(part.to(shop.device))
                for part in resized(to_bytes(drawn), side).split(250)
            ]
        found = compare(
            real.features,
            torch.cat([part.features.cpu() for part in parts]),
            torch.cat([part.logits.cpu() for part in parts]),
            features=features.name,
            seed=number,
        )
        rows.append(found)
    return {
        "fid": [row.fid for row in rows],
        "kid": [row.kid_mean for row in rows],
        "samples": scale.fid_samples,
        "images": len(images),
        "images_sha256": sha256_bytes(images.numpy().tobytes()),
        "features": features.name,
        "resized_to": side,
        "sampler": settings.label,
    }


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 images ``(count, C, H, W)`` at ``side`` pixels, bilinear with antialiasing."""
    if images.shape[-1] == side:
        return images
    grown = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return grown.round().clamp(0, 255).to(torch.uint8)
