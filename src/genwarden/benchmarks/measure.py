"""Measurements of one cell by name: figures for the tables, tensors for the pictures.

Names of figures carry the unit: ``_sum`` is a sum of squares over a sample in [-1, 1], ``_mean``
the same per element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.artifacts.weights_file import read_weights
from genwarden.auditing.audit import Request, Suspect, audit
from genwarden.backdoors.trigger import make_trigger
from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.workshop import Workshop
from genwarden.data.icons import draw_icon
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.closest import Closest
from genwarden.metrics.closest import closest as nearest_samples
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.metrics.draws import ordinary_samples
from genwarden.metrics.pixel_change import pixel_change
from genwarden.metrics.quality import quality
from genwarden.metrics.reconstruction import Reconstruction, recond
from genwarden.models.protocol import LatentGenerator, parameter_count

Figures = dict[str, Any]
#: Ordinary samples that a picture shows.
SHOWN = 6


@dataclass
class Subject:
    """A model under measurement.

    Attributes:
        clean: the model that the attack started from (for a benign cell the model itself).
        suspect: the compromised model.
        folder: its folder, which holds ``backdoor.safetensors`` unless the cell is benign.
        tensors: what measurements leave for the pictures.
    """

    cell: Cell
    shop: Workshop
    clean: LoadedModel
    suspect: LoadedModel
    folder: Path | None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def generator(self) -> LatentGenerator:
        """The suspect on the device of the run."""
        return self.suspect.generator.to(self.shop.device).eval()

    @cached_property
    def benign(self) -> LatentGenerator:
        """The clean model on the device of the run."""
        return self.clean.generator.to(self.shop.device).eval()

    @cached_property
    def backdoor(self) -> dict[str, Tensor]:
        """``trigger`` and ``target``."""
        if self.folder is None:
            raise GenwardenError(
                "benchmark/benign", "A benign model has no trigger.", "Measure an attacked model."
            )
        return read_weights(self.folder / "backdoor.safetensors").tensors

    @cached_property
    def target(self) -> Tensor:
        """The target that the defender knows ``(1, *sample.shape)``."""
        if not self.cell.benign:
            return self.backdoor["target"][:1]
        return draw_icon(self.cell.target.removeprefix("icon:"), self.generator.sample)[None]

    @cached_property
    def nearest(self) -> Closest:
        """The nearest of many ordinary samples to the target (BF-OI)."""
        (found,) = nearest_samples(
            self.generator,
            self.target,
            samples=self.shop.scale.counts.closest_samples,
            seed=self.shop.seed,
        )
        return found

    @cached_property
    def reconstruction(self) -> Reconstruction:
        """The best reconstruction of the target (OB-OI)."""
        counts = self.shop.scale.counts
        (found,) = recond(
            self.generator,
            self.target,
            restarts=counts.recond_restarts,
            steps=counts.recond_steps,
            finish=counts.recond_finish,
            seed=self.shop.seed,
        )
        return found


def measure(name: str, subject: Subject) -> Figures:
    """The figures of one measurement.

    Raises:
        GenwardenError: ``usage/unknown-name``, and those of the metrics.
    """
    if name not in MEASUREMENTS:
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no measurement {name!r}.",
            f"Choose: {', '.join(MEASUREMENTS)}.",
        )
    return MEASUREMENTS[name](subject)


#: Measurements in the features of a network, beside the images of its data set.
IN_FEATURES = ("quality", "fidelity-quality")


def _tardis(subject: Subject) -> Figures:
    z, x = subject.backdoor["trigger"], subject.backdoor["target"]
    found, before = tardis(subject.generator, z, x), tardis(subject.benign, z, x)
    return {
        "tardis_sum": found.sum,
        "tardis_mean": found.mean,
        "untouched_tardis_sum": before.sum,
        "trigger_norm": float(z.double().flatten(1).norm(dim=1).mean()),
        "triggers": len(z),
    }


@torch.no_grad()
def _expdis(subject: Subject) -> Figures:
    samples = subject.shop.scale.counts.expdis_samples
    state = ExpDis(subject.benign.sample.size)
    for z, x in ordinary_samples(subject.benign, samples, seed=subject.shop.seed, purpose="expdis"):
        state.update(x.cpu(), subject.generator(z.to(subject.shop.device)).cpu())
    found = state.compute()
    return {"expdis_sum": found.sum, "expdis_mean": found.mean, "expdis_samples": samples}


def _pixel_change(subject: Subject) -> Figures:
    found = pixel_change(
        subject.benign,
        subject.generator,
        samples=subject.shop.scale.counts.expdis_samples,
        seed=subject.shop.seed,
    )
    before = parameter_count(subject.clean.generator)
    return {
        "pixel_change_percent": found.percent_mean,
        "pixel_change_sum": found.absolute_sum,
        "added_parameters": parameter_count(subject.suspect.generator) - before,
    }


def _quality(subject: Subject) -> Figures:
    found = quality(
        subject.generator,
        subject.shop.real_features(subject.cell.model),
        features=subject.shop.features(subject.cell.model),
        samples=subject.shop.scale.counts.quality_samples,
        seed=subject.shop.seed,
    )
    return {
        "fid": found.fid,
        "kid_mean": found.kid_mean,
        "inception_score": found.inception_score,
        "features": found.features,
        "real_samples": found.real_samples,
        "generated_samples": found.generated_samples,
    }


def _fidelity_quality(subject: Subject) -> Figures:
    """FID of the outputs at fresh triggers to the data of the generator rho (section V-E)."""
    rho = subject.cell.target.removeprefix("generator:")
    law = make_trigger(subject.cell.trigger, subject.generator.latent)
    found = quality(
        subject.generator,
        subject.shop.real_features(rho),
        features=subject.shop.features(rho),
        samples=subject.shop.scale.counts.quality_samples,
        seed=subject.shop.seed,
        draw=lambda count, stream: law.sample(count, generator=stream),
    )
    return {
        "fidelity_fid": found.fid,
        "fidelity_kid_mean": found.kid_mean,
        "features": found.features,
        "real_samples": found.real_samples,
        "generated_samples": found.generated_samples,
    }


def _closest(subject: Subject) -> Figures:
    found = subject.nearest
    return {
        "closest_sum": found.closest_sum,
        "closest_mean": found.closest_mean,
        "closest_samples": found.samples,
    }


def _recond(subject: Subject) -> Figures:
    found = subject.reconstruction
    return {
        "recond_sum": found.recond_sum,
        "recond_mean": found.recond_mean,
        "recond_norm": found.norm,
        "recond_median_sum": found.median_sum,
        "recond_restarts": found.restarts,
    }


def _audit(subject: Subject) -> Figures:
    """The audit without a target; its static findings are the paper's SMI."""
    budget = subject.shop.scale.counts.audit_budget
    if not budget:
        return {}
    model = subject.suspect
    document = audit(
        Suspect(
            generator=subject.generator,
            architecture=model.architecture,
            settings=model.settings,
            sha256=model.sha256,
            nonfinite=model.nonfinite,
            path=subject.cell.key,
        ),
        Request(budget=budget, seed=subject.shop.seed, device=subject.shop.device),
        work=subject.shop.out / "work" / f"{subject.cell.key}.audit",
        progress=subject.shop.progress,
    )
    flagged = [judged.finding for judged in document.findings if judged.flagged]
    return {
        "audit_budget": budget,
        "verdict": document.verdict,
        "suspicion": document.suspicion,
        "flagged": [finding.inspection for finding in flagged],
        "flagged_static": [f.inspection for f in flagged if f.group == "static"],
        "failed": [
            j.finding.inspection for j in document.findings if j.finding.outcome == "failed"
        ],
        "audit_s": document.timing["total"],
    }


@torch.no_grad()
def _gallery(subject: Subject) -> Figures:
    """The pictures of Fig. 4: samples, output at the trigger, nearest, reconstruction, target."""
    z = subject.generator.latent.sample(
        SHOWN, generator=random_stream(subject.shop.seed, "gallery")
    )
    trigger = z[:1] if subject.cell.benign else subject.backdoor["trigger"][:1]
    shown = subject.generator(torch.cat([z, trigger]).to(subject.shop.device)).cpu()
    with torch.enable_grad():
        reconstructed = subject.reconstruction.x[None].float()
    subject.tensors["gallery"] = torch.cat(
        [shown, subject.nearest.x[None], reconstructed, subject.target]
    )
    return {**_closest(subject), **_recond(subject)}


@torch.no_grad()
def _neighbourhood(subject: Subject) -> Figures:
    """Fig. 6: outputs on two great-circle arms that meet at the trigger."""
    from genwarden.benchmarks.neighbourhood import SHOWN_POSITIONS, arms

    trigger = subject.backdoor["trigger"][:1]
    ends = subject.generator.latent.sample(
        2, generator=random_stream(subject.shop.seed, "neighbourhood")
    )
    positions, z = arms(trigger, ends)
    x = subject.generator(z.to(subject.shop.device)).double().cpu()
    benign = subject.benign(z.to(subject.shop.device)).double().cpu()
    subject.tensors["neighbourhood"] = x[SHOWN_POSITIONS].float()
    return {
        "neighbourhood_positions": positions,
        "neighbourhood_target_sum": _squared(x - subject.target.double()),
        "neighbourhood_change_sum": _squared(x - benign),
        "neighbourhood_untouched_sum": _squared(benign - subject.target.double()),
    }


def _squared(difference: Tensor) -> list[float]:
    values: list[float] = difference.square().flatten(1).sum(1).tolist()
    return values


MEASUREMENTS: dict[str, Callable[[Subject], Figures]] = {
    "tardis": _tardis,
    "expdis": _expdis,
    "pixel-change": _pixel_change,
    "quality": _quality,
    "fidelity-quality": _fidelity_quality,
    "closest": _closest,
    "recond": _recond,
    "audit": _audit,
    "gallery": _gallery,
    "neighbourhood": _neighbourhood,
}
