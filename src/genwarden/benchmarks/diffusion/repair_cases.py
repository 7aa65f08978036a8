"""The compromised models of ``diffusion-repairs``, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion
from genwarden.artifacts.json_object import parse_object
from genwarden.artifacts.read_once import read_once
from genwarden.attacks.diffusion.evaluation import quick_sampler
from genwarden.backdoors.image_backdoor import RECORD_NAME, ImageBackdoor, read_image_backdoor
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.sampling import SamplerSettings

_STEPS: Final = 50


@dataclass(frozen=True)
class Case:
    """One compromised model and what is known about it; only ``loaded`` goes to a repair.

    Attributes:
        name: of its folder.
        base: the clean model that it was made from.
        sampler: the one that the attack was made for, in at most 50 steps.
        own_sampler: the attack ships a sampler of its own.
    """

    name: str
    loaded: LoadedDiffusion
    base: LoadedDiffusion
    backdoor: ImageBackdoor
    sampler: SamplerSettings
    own_sampler: bool


def cases_of(models: str, bases: str) -> list[Case]:
    """The folders ``models`` and ``bases``, each joined by ``+``; one base stands for all.

    Raises:
        GenwardenError: ``benchmark/models-missing``, ``benchmark/models-unlike``,
            ``attack/record``, and those of reading.
    """
    folders = [Path(text) for text in models.split("+") if text]
    clean = [Path(text) for text in bases.split("+") if text]
    if not folders or len(clean) not in {1, len(folders)}:
        raise GenwardenError(
            "benchmark/models-missing",
            f"The recipe diffusion-repairs got {len(folders)} models and {len(clean)} bases.",
            "Add --option models=DIR1+DIR2 and --option bases=DIR (one for all, or one for each).",
        )
    found = []
    for folder, base in zip(folders, clean * (len(folders) // len(clean)), strict=True):
        record = parse_object(read_once(folder / RECORD_NAME), str(folder / RECORD_NAME))
        try:
            sampler = SamplerSettings(**record["sampler"])
            own_sampler = bool(record["own_sampler"])
        except (KeyError, TypeError) as error:
            raise GenwardenError(
                "attack/record",
                f"{folder} does not say which sampler it was attacked for ({error}).",
                "Name a folder that `genwarden attack` wrote from a diffusion model.",
            ) from error
        found.append(
            Case(
                name=folder.name,
                loaded=read_diffusion(folder),
                base=read_diffusion(base),
                backdoor=read_image_backdoor(folder),
                sampler=quick_sampler(_shortened(sampler), _STEPS),
                own_sampler=own_sampler,
            )
        )
    shapes = {case.loaded.model.sample.shape for case in found}
    if len(shapes) > 1:
        raise GenwardenError(
            "benchmark/models-unlike",
            f"The models make pictures of different shapes: {sorted(shapes)}. Their FID is taken "
            "against the same images.",
            "Run the recipe once for each shape, with an --out of its own.",
        )
    return found


def _shortened(sampler: SamplerSettings) -> SamplerSettings:
    """DDPM in few steps is DDIM with eta = 1, whose coefficient at T is the same."""
    if sampler.name == "ddpm" and sampler.steps > _STEPS:
        return SamplerSettings("ddim", _STEPS, eta=1.0, clip=sampler.clip)
    return sampler
