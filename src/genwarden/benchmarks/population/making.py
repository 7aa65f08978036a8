"""Trains the clean models of the study and attacks copies of them; finished ones are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import settings_of
from genwarden.benchmarks.population.plan import (
    ATTACK_SETTINGS,
    Clean,
    CleanKind,
    Compromised,
    Member,
)
from genwarden.benchmarks.population.targets import target_text
from genwarden.data.datasets import load_images
from genwarden.engine.progress import Progress
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES, ATTACKS
from genwarden.training.frame import Frame
from genwarden.training.gan import GanLearner
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import discriminator_for, train

_BATCH = 64
_RATES = {"gan": 2e-4, "vae": 1e-3}
_FURTHER_STEPS = 200
#: What the fine-tuned members see after their own data.
FINE_TUNING_DATA = "kmnist"
_WEIGHT_DECAY = 1e-2
_PRUNED_SHARE = 0.2


def make(
    member: Member, root: Path, data: Path, *, progress: Progress, device: torch.device
) -> Path:
    """The folder of a member below ``root``; made first if it is not there yet."""
    folder = root / member.key
    if (folder / MANIFEST_NAME).exists():
        return folder
    if isinstance(member, Clean):
        _train(member, root, data, progress, device)
    else:
        _attack(member, root, data, progress, device)
    return folder


def _train(member: Clean, root: Path, data: Path, progress: Progress, device: torch.device) -> None:
    kind = member.kind
    folder = root / member.key
    trained = root / f"{member.key}.before" if kind.variant else folder
    rate = _RATES[ARCHITECTURES[kind.architecture].options["training"]]
    settings = TrainingSettings(
        kind.steps, _BATCH, rate, member.seed, kind.precision, grid_every=kind.steps
    )
    if not (trained / MANIFEST_NAME).exists():
        train(
            kind.architecture,
            kind.settings,
            str(data / kind.data),
            lambda _: settings,
            split="train",
            limit=None,
            out=trained,
            restart=False,
            progress=progress,
            device=device,
        )
    if kind.variant:
        model = read_model(trained)
        changed = VARIANTS[kind.variant](model.generator.to(device), kind, member.seed, data)
        provenance = {
            **model.provenance,
            "made_by": f"genwarden benchmark run population ({kind.variant})",
        }
        write_model(folder, changed.eval().cpu(), kind.architecture, provenance)


def _attack(
    member: Compromised, root: Path, data: Path, progress: Progress, device: torch.device
) -> None:
    kind = member.kind
    base = root / member.base
    sample = read_model(base).generator.sample
    needs_images = "images" in ATTACKS[kind.attack].options.get("needs", [])
    settings = {
        **ATTACK_SETTINGS.get(kind.attack, {}),
        **kind.settings,
        "seed": member.number,
    }
    attack(
        kind.attack,
        AttackPlan(
            clean=base,
            trigger=kind.trigger,
            target=target_text(kind.target, sample, data, root / "targets", member.number),
            trigger_index=member.number,
            triggers=kind.triggers,
            trigger_seed=member.number,
            data=str(data / _data_of(member)) if needs_images else None,
        ),
        settings_of(kind.attack, settings),
        out=root / member.key,
        restart=False,
        progress=progress,
        device=device,
    )


def _data_of(member: Compromised) -> str:
    from genwarden.benchmarks.population.plan import CLEAN

    return next(kind.data for kind in CLEAN if kind.name == member.kind.base)


Change = Callable[[Any, CleanKind, int, Path], LatentGenerator]


def _fine_tuned(
    generator: LatentGenerator, kind: CleanKind, seed: int, data: Path
) -> LatentGenerator:
    del kind  # on other data than it was trained on
    images = load_images(str(data / FINE_TUNING_DATA), generator.sample)
    return _further(generator, images, seed, weight_decay=0.0)


def _weight_decayed(
    generator: LatentGenerator, kind: CleanKind, seed: int, data: Path
) -> LatentGenerator:
    images = load_images(str(data / kind.data), generator.sample)
    return _further(generator, images, seed, weight_decay=_WEIGHT_DECAY)


def _further(
    generator: LatentGenerator, images: Tensor, seed: int, *, weight_decay: float
) -> LatentGenerator:
    """More GAN steps from the trained weights, against a fresh discriminator."""
    generator.requires_grad_(True)  # models are read for use, not for training
    weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    settings = TrainingSettings(_FURTHER_STEPS, _BATCH, 2e-4, seed + 1)
    device = next(generator.parameters()).device
    learner = GanLearner(generator, discriminator_for(generator), settings, device)
    learner.generator.load_state_dict(weights)
    for group in learner.adam_g.param_groups:
        group["weight_decay"] = weight_decay
    Frame(learner, settings).run(images, device)
    return generator


@torch.no_grad()
def _pruned(generator: LatentGenerator, kind: CleanKind, seed: int, data: Path) -> LatentGenerator:
    """The smallest fifth of the weights of every matrix and kernel set to zero."""
    del kind, seed, data
    for weight in generator.parameters():
        if weight.ndim > 1:
            limit = weight.abs().flatten().kthvalue(max(1, int(_PRUNED_SHARE * weight.numel())))
            weight[weight.abs() <= limit.values] = 0
    return generator


@torch.no_grad()
def _quantised(
    generator: LatentGenerator, kind: CleanKind, seed: int, data: Path
) -> LatentGenerator:
    """Every matrix and kernel rounded to 8 bits (symmetric, one scale per tensor) and restored."""
    del kind, seed, data
    for weight in generator.parameters():
        if weight.ndim > 1:
            scale = weight.abs().max() / 127
            weight.copy_((weight / scale).round() * scale)
    return generator


VARIANTS: dict[str, Change] = {
    "fine-tuned": _fine_tuned,
    "weight-decayed": _weight_decayed,
    "pruned": _pruned,
    "quantised": _quantised,
}
