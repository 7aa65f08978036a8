"""Trains the clean models of the compression study and attacks them; finished ones are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.classifier_folder import read_classifier, write_classifier
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.compression.run_classifier import (
    ClassifierAttackPlan,
    attack_classifier,
)
from genwarden.attacks.compression.run_classifier import settings_of as classifier_settings
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import settings_of
from genwarden.benchmarks.compression.honest import (
    further_classifier,
    further_generator,
    source,
)
from genwarden.benchmarks.compression.plan import Base, Further, Kind, Member
from genwarden.engine.progress import Progress
from genwarden.registry import ARCHITECTURES
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train

_BATCH = 64
_RATES = {"gan": 2e-4, "vae": 1e-3}
_CLASSIFIER_RATE = 0.1

_BOX: dict[str, Any] = {
    "steps": 500,
    "hiding_steps": 250,
    "batch_size": 32,
    "pool_samples": 4096,
    "fidelity_weight": 0.3,
    "evaluate_every": 10_000,
}
_CLASS_BOX: dict[str, Any] = {"resize": True, "evaluate_every": 10_000}
_JOINT: dict[str, Any] = {"resize": True, "steps": 400, "evaluate_every": 100}
#: Settings by attack: enough for a compressed output at the target, in tens of seconds.
SETTINGS: dict[str, dict[str, Any]] = {
    "dormant-box": _BOX,
    "jittered-box": _BOX,
    "dormant-box-classifier": _CLASS_BOX,
    "jittered-box-classifier": _CLASS_BOX,
    "quantisation-artifact": _JOINT,
    # What deployers do is measured by the study itself.
    "pruning-artifact": {**_JOINT, "layer_rates": "uniform", "deployed_rates": ()},
}


def make(
    member: Member, root: Path, data: Path, *, progress: Progress, device: torch.device
) -> Path:
    """The folder of a member below ``root``; made first if it is not there yet."""
    folder = root / member.key
    if (folder / MANIFEST_NAME).exists():
        return folder
    if member.kind is not None:
        _attack(member, member.kind, root, data, progress, device)
    elif member.further is not None:
        _further(member, member.further, root, data, device)
    else:
        _train(member.base, folder, member.seed, data, progress, device)
    return folder


def _train(
    base: Base, folder: Path, seed: int, data: Path, progress: Progress, device: torch.device
) -> None:
    rate = _CLASSIFIER_RATE
    if base.sort == "generator":
        rate = _RATES[ARCHITECTURES[base.architecture].options["training"]]
    train(
        base.architecture,
        base.settings,
        source(data, base.data),
        lambda _: TrainingSettings(base.steps, _BATCH, rate, seed, grid_every=base.steps),
        split="train",
        limit=None,
        out=folder,
        restart=False,
        progress=progress,
        device=device,
    )


def _further(
    member: Member, further: Further, root: Path, data: Path, device: torch.device
) -> None:
    base, folder, start = member.base, root / member.key, root / member.base_key
    made_by = f"genwarden benchmark run compression-population ({further.name})"
    provenance = {"made_by": made_by, "compromised": False}
    if base.sort == "generator":
        generator = read_model(start).generator.to(device)
        changed = further_generator(generator, base, further, member.seed, data)
        write_model(folder, changed.cpu(), base.architecture, provenance)
    else:
        classifier = read_classifier(start).classifier.to(device)
        altered = further_classifier(classifier, base, further, member.seed, data)
        write_classifier(folder, altered.cpu(), base.architecture, provenance)


def attack_settings(kind: Kind, seed: int) -> dict[str, Any]:
    """The settings of a member's attack, as ``--option`` would give them."""
    made = {**SETTINGS[kind.attack], **kind.settings, "seed": seed}
    if kind.attack == "quantisation-artifact":
        used = tuple(kind.how.split(","))
        return {"quantisers": used, "deployed": used, **made}
    if kind.attack == "pruning-artifact":
        return {"rate": float(kind.how.rpartition("-")[2]), **made}
    return {"how": kind.how, **made}


def _attack(
    member: Member, kind: Kind, root: Path, data: Path, progress: Progress, device: torch.device
) -> None:
    given = attack_settings(kind, member.seed)
    clean, out = root / member.base_key, root / member.key
    if member.sort == "generator":
        attack(
            kind.attack,
            AttackPlan(
                clean=clean,
                trigger=kind.trigger,
                target=kind.target,
                trigger_index=member.seed,
                trigger_seed=member.seed,
            ),
            settings_of(kind.attack, given),
            out=out,
            restart=False,
            progress=progress,
            device=device,
        )
    else:
        attack_classifier(
            kind.attack,
            ClassifierAttackPlan(
                clean=clean,
                data=source(data, member.base.data),
                trigger=kind.trigger,
                target=kind.target,
            ),
            classifier_settings(kind.attack, given),
            out=out,
            restart=False,
            progress=progress,
            device=device,
        )
