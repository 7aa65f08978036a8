"""What a repair did: distances at the trigger, on ordinary latents, to the data; and a re-audit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.auditing.audit import Request, audit
from genwarden.backdoors.fit import require_pairs
from genwarden.benchmarks.repairs.suspects import Case
from genwarden.commands.open_suspect import suspect_of
from genwarden.data.datasets import load_images
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.metrics.distances import expdis
from genwarden.metrics.feature_network import (
    SHIPPED,
    FeatureExtractor,
    feature_network,
    read_card,
    shipped,
)
from genwarden.metrics.quality import RealFeatures, describe_real, quality
from genwarden.models.protocol import LatentGenerator, SampleSpec

#: Images of the data behind an FID.
REAL_IMAGES = 10_000
#: Seeds of the generated samples behind an FID.
FID_SEEDS = (0, 1, 2)
#: Ordinary samples in a picture.
SHOWN = 4
_BATCH = 256


@torch.no_grad()
def target_distances(generator: LatentGenerator, trigger: Tensor, target: Tensor) -> Tensor:
    """Squared distance (sum) from the output at every trigger to its target ``(triggers,)``.

    Their mean is TarDis.
    """
    require_pairs(generator, trigger, target)
    device = next(generator.parameters()).device
    x = torch.cat([generator(part.to(device)).cpu() for part in trigger.split(_BATCH)])
    return (x.double() - target.double()).square().flatten(1).sum(1)


def at_the_trigger(case: Case, repaired: LatentGenerator) -> dict[str, float | int]:
    """TarDis of the suspect, of the repaired and of the clean model, and their ratios.

    ``ratio`` is TarDis after the repair over that of the clean model; ``ratio_worst`` the smallest
    such ratio of a single trigger: one that still works must not hide behind others.
    """
    if case.trigger is None or case.target is None:
        return {}
    z, x = case.trigger, case.target.expand(len(case.trigger), *case.target.shape[1:])
    before = target_distances(case.suspect.generator, z, x)
    after = target_distances(repaired, z, x)
    clean = target_distances(case.clean.generator, z, x).clamp_min(1e-12)
    return {
        "triggers": len(z),
        "tardis_before_sum": float(before.mean()),
        "tardis_after_sum": float(after.mean()),
        "tardis_clean_sum": float(clean.mean()),
        "ratio_before": float(before.mean() / clean.mean()),
        "ratio": float(after.mean() / clean.mean()),
        "ratio_worst": float((after / clean).min()),
    }


def on_ordinary_latents(
    case: Case, repaired: LatentGenerator, samples: int, seed: int
) -> dict[str, float | int]:
    """ExpDis of the repaired model to the suspect and to the clean one, and between these two."""
    found: dict[str, float | int] = {"expdis_samples": samples}
    pairs = {
        "suspect": (case.suspect.generator, repaired),
        "clean": (case.clean.generator, repaired),
        "attack": (case.clean.generator, case.suspect.generator),
    }
    for name, (one, other) in pairs.items():
        distance = expdis(one, other, samples=samples, seed=seed)
        found |= {f"expdis_{name}_sum": distance.sum, f"expdis_{name}_mean": distance.mean}
    return found


def fid_values(
    generator: LatentGenerator, data: Path, data_set: str, samples: int
) -> dict[str, Any]:
    """FID to the data, once per seed of the generated samples; ``skipped`` says why there is none.

    Args:
        data: folder of the data sets by name.
    """
    name = _network_of(data_set)
    if name is None:
        return {"skipped": f"no feature network for {data_set} is shipped"}
    network, real = _described(name, str(data / data_set), generator.sample)
    found = [
        quality(generator, real, features=network, samples=samples, seed=seed).fid
        for seed in FID_SEEDS
    ]
    return {"fid": found, "features": name, "samples": samples, "real": len(real.features)}


def _network_of(data_set: str) -> str | None:
    cards = {read_card(SHIPPED / name).data_set: name for name in shipped()}
    return cards.get(data_set)


@lru_cache(maxsize=4)
def _described(name: str, folder: str, sample: SampleSpec) -> tuple[FeatureExtractor, RealFeatures]:
    # Reading a data set takes seconds, and every cell of a process asks for the same ones.
    network = feature_network(name)
    images = load_images(folder, sample, limit=REAL_IMAGES)
    return network, describe_real(images, network)


def reaudit(
    model: LoadedModel, budget: str, seed: int, device: torch.device, work: Path
) -> dict[str, Any]:
    """The verdict on a repaired model, from nothing but the model."""
    cpu, wall = time.process_time(), time.perf_counter()
    document = audit(
        suspect_of(model, "model"),
        Request(budget=budget, seed=seed, device=device),
        work=work,
        progress=Silent(),
    )
    return {
        "verdict": document.verdict,
        "suspicion": document.suspicion,
        "flagged": [j.finding.inspection for j in document.findings if j.flagged],
        "failed": [
            j.finding.inspection for j in document.findings if j.finding.outcome == "failed"
        ],
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


@torch.no_grad()
def shown(case: Case, repaired: LatentGenerator, seed: int) -> Tensor | None:
    """A row of a picture sheet: samples of suspect and repaired, the three at the trigger, target.

    Returns:
        ``(2 SHOWN + 4, *sample.shape)`` in [-1, 1]; None where there is no trigger to show.
    """
    if case.trigger is None or case.target is None:
        return None
    suspect, clean = case.suspect.generator, case.clean.generator
    device = next(suspect.parameters()).device
    z = suspect.latent.sample(SHOWN, generator=random_stream(seed, "repair-sheet")).to(device)
    trigger = case.trigger[:1].to(device)
    rows: Sequence[Tensor] = [suspect(z), repaired(z), clean(trigger), suspect(trigger)]
    return torch.cat([*(row.cpu() for row in rows), repaired(trigger).cpu(), case.target[:1]])
