"""Trains the clean diffusion models of the study and attacks them; finished ones are kept."""

from __future__ import annotations

from pathlib import Path

import torch

from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.attacks.diffusion.run import DiffusionAttackPlan, attack_diffusion, settings_of
from genwarden.benchmarks.diffusion.plan import Base, Further, Kind, Member
from genwarden.data.datasets import load_images
from genwarden.engine.progress import Progress
from genwarden.training.ddpm import DdpmSettings, train_ddpm
from genwarden.training.settings import TrainingSettings
from genwarden.training.train_diffusion import train_diffusion

_BATCH = 64
_RATE = 2e-3


def make(
    member: Member, root: Path, data: Path, *, progress: Progress, device: torch.device
) -> Path:
    """The folder of a member below ``root``; made first if it is not there yet."""
    folder = root / member.key
    if (folder / INDEX_NAME).exists():
        return folder
    if member.kind is not None:
        _attack(member, member.kind, root, data, progress, device)
    elif member.further is not None:
        _further(member, member.further, root, data, progress, device)
    else:
        _train(member.base, folder, member.seed, data, progress, device)
    return folder


def _train(
    base: Base, folder: Path, seed: int, data: Path, progress: Progress, device: torch.device
) -> None:
    choice = {
        "network": "tiny",
        "size": base.size,
        "channels": base.channels,
        "resize": True,
        **({"widths": list(base.widths)} if base.widths else {}),
    }
    train_diffusion(
        choice,
        str(data / base.data),
        lambda _: TrainingSettings(base.steps, _BATCH, _RATE, seed, grid_every=base.steps),
        split=_split(base.data),
        limit=None,
        out=folder,
        restart=False,
        progress=progress,
        device=device,
    )


def _further(
    member: Member,
    further: Further,
    root: Path,
    data: Path,
    progress: Progress,
    device: torch.device,
) -> None:
    """Ordinary training that goes on from the base, on its own data or on other data."""
    source = further.data or member.base.data
    loaded = read_diffusion(root / member.base_key)
    images = load_images(str(data / source), loaded.model.sample, split=_split(source), resize=True)
    settings = DdpmSettings(
        further.steps,
        _BATCH,
        further.learning_rate,
        member.seed,
        grid_every=further.steps,
        checkpoint_every=further.steps,
    )
    folder = root / member.key
    record = train_ddpm(
        loaded.model,
        images,
        settings,
        out=folder,
        run_id=member.key,
        progress=progress,
        device=device,
    )
    provenance = {
        "made_by": f"genwarden benchmark run diffusion-population ({further.name})",
        "compromised": False,
        "result": record,
    }
    write_diffusion(folder, loaded.model.cpu(), provenance)


def _attack(
    member: Member, kind: Kind, root: Path, data: Path, progress: Progress, device: torch.device
) -> None:
    attack_diffusion(
        kind.attack,
        DiffusionAttackPlan(
            clean=root / member.base_key,
            data=str(data / member.base.data),
            trigger=kind.trigger,
            target=kind.target,
            split=_split(member.base.data),
        ),
        settings_of(kind.attack, member.settings),
        out=root / member.key,
        restart=False,
        progress=progress,
        device=device,
    )


def _split(data: str) -> str:
    return "test" if data == "kmnist" else "train"
