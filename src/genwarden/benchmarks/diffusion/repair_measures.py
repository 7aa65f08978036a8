"""How ``diffusion-repairs`` judges a model: target MSE at the true trigger, FID on plain noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from genwarden.attacks.diffusion.trojdiff_sampler import trojan_sample
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.benchmarks.diffusion.fidelity import resized
from genwarden.benchmarks.diffusion.repair_cases import Case
from genwarden.data.datasets import load_images, to_bytes
from genwarden.engine.seeds import random_stream
from genwarden.metrics.feature_network import SHIPPED as FEATURES
from genwarden.metrics.feature_network import FeatureExtractor, feature_network, read_card
from genwarden.metrics.quality import RealFeatures, compare, describe_real
from genwarden.metrics.target_match import TargetFigures, target_match
from genwarden.models.diffusion.defended import Defence, sample_defended
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.sampling import SamplerSettings

_BATCH: Final = 64
_REAL_LIMIT: Final = 10_000


@dataclass(frozen=True)
class Measures:
    """How samples are judged.

    Attributes:
        side: of the pictures that ``features`` reads, in pixels; samples are enlarged to it.
        real: features of the data set.
        samples: N of the FID; ``triggered`` samples at the true trigger.
    """

    features: FeatureExtractor
    side: int
    real: RealFeatures
    samples: int
    triggered: int
    seed: int
    device: torch.device


def measures_of(
    out: Path,
    data: str,
    case: Case,
    features: str,
    samples: int,
    triggered: int,
    seed: int,
    device: torch.device,
) -> Measures:
    """Features of the data set ``data`` as ``case`` sees it, kept below ``out``."""
    network = feature_network(features, device=device)
    side = read_card(FEATURES / features).sample_shape[1]
    images = load_images(data, case.loaded.model.sample, limit=_REAL_LIMIT, resize=True)
    real = describe_real(resized(images, side), network, work=out / "work")
    return Measures(network, side, real, samples, triggered, seed, device)


def judged(
    model: DiffusionModel,
    case: Case,
    sampler: SamplerSettings,
    defence: Defence,
    measures: Measures,
) -> dict[str, Any]:
    """Target MSE and share at the true trigger, and FID on plain noise."""
    model = model.to(measures.device).eval()
    hit = drawn(model, case, sampler, defence, measures, measures.triggered, case.backdoor)
    found: TargetFigures = target_match(hit, case.backdoor.targets)
    plain = drawn(model, case, sampler, defence, measures, measures.samples, None)
    described = [
        measures.features.describe(resized(to_bytes(part), measures.side).to(measures.device))
        for part in plain.split(_BATCH)
    ]
    quality = compare(
        measures.real.features,
        torch.cat([part.features.cpu() for part in described]),
        torch.cat([part.logits.cpu() for part in described]),
        features=measures.features.name,
        seed=measures.seed,
    )
    return {"mse": found.mse, "ssim": found.ssim, "share": found.share, "fid": quality.fid}


@torch.no_grad()
def drawn(
    model: DiffusionModel,
    case: Case,
    sampler: SamplerSettings,
    defence: Defence,
    measures: Measures,
    count: int,
    backdoor: ImageBackdoor | None,
) -> Tensor:
    """Samples clamped to [-1, 1] on the CPU; all methods get the same noise.

    Where the attack ships its own sampler the trigger is shown with that one, undefended; a user
    with a defence runs an ordinary sampler.
    """
    shape = (count, *model.sample.shape)
    noise = torch.randn(shape, generator=random_stream(measures.seed, "diffusion-repairs"))
    own = case.own_sampler and backdoor is not None and defence == Defence()
    images = []
    for number, part in enumerate(noise.split(_BATCH)):
        stream = random_stream(measures.seed, "diffusion-repairs-steps", number)
        start = (part if backdoor is None else backdoor.trigger.start(part)).to(measures.device)
        if own and backdoor is not None:
            made = trojan_sample(model, start, backdoor.trigger, sampler, stream)
        else:
            made = sample_defended(model, start, sampler, stream, defence)
        images.append(made.clamp(-1, 1).cpu())
    return torch.cat(images)
