"""``genwarden sample`` on a diffusers folder: any sampler, given noise, defences at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion
from genwarden.attacks.diffusion.samplers_by_name import sampler_by_name
from genwarden.commands.as_deployed import as_deployed
from genwarden.commands.open_suspect import read_noise
from genwarden.commands.report import read_audit_of
from genwarden.compression.contract import Compressor
from genwarden.data.grids import write_grid
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.defended import Defence, sample_defended
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.sampling import Clip, SamplerSettings
from genwarden.repairs.diffusion.clues import diffusion_clues_of, shifts_under
from genwarden.reports.advice import woken

#: A sampler of many steps takes its time: fewer pictures than of a generator.
_COUNT = 16
_BLOCK = 64


@dataclass(frozen=True)
class DiffusionSampling:
    """How a diffusion model is sampled; see ``genwarden sample --help``.

    Attributes:
        sampler: NAME[-STEPS][:ETA], or None for the folder's own.
        eta: of ddim; that of ``sampler`` if None.
        clip: none, x0 or xt; that of the folder's own sampler if None, where it is used.
        noise: file with the initial noise.
        launder: amplitude of fresh noise in the initial one.
        whiten: see :func:`genwarden.models.diffusion.defended.whiten`.
        random_eta: draw eta anew at every step.
    """

    sampler: str | None = None
    eta: float | None = None
    clip: str | None = None
    noise: Path | None = None
    launder: float = 0.0
    whiten: bool = False
    random_eta: bool = False

    def flags(self) -> list[str]:
        """The flags that differ from their defaults."""
        plain = DiffusionSampling()
        names = {name: f"--{name.replace('_', '-')}" for name in vars(plain)}
        return [flag for n, flag in names.items() if getattr(self, n) != getattr(plain, n)]


@torch.no_grad()
def sample_diffusion(
    folder: Path,
    out: Path,
    wish: DiffusionSampling,
    *,
    count: int | None,
    columns: int,
    seed: int,
    audit_json: Path | None = None,
    candidate: int = 1,
    chosen: Compressor | None = None,
) -> Path:
    """Draw samples from plain or given noise and write them as a PNG grid.

    Args:
        count: of plain noises (default 16), or at most so many of the given ones (all).
        audit_json: an audit of this model; its recovered shift number ``candidate`` (from 1) is
            added to the noise.
        chosen: compresses the model first; shifts are then those that the audit recovered under it.

    Raises:
        GenwardenError: ``sample/other-model``, ``sample/no-such-candidate``,
            ``sample/not-images``, ``usage/sampler-...``, ``usage/launder``, ``usage/random-eta``,
            ``sample/nothing-compressed``, those of a noise file and of opening a model.
    """
    if out.suffix.lower() == ".wav":
        raise GenwardenError(
            "sample/not-images",
            f"{folder} makes images that cannot be written as {out.name}.",
            "Name a PNG file.",
        )
    loaded = read_diffusion(folder)
    model = loaded.model
    settings = sampler_of(model, wish)
    defence = Defence(wish.launder, wish.whiten, wish.random_eta)
    shape = model.sample.shape
    if wish.noise is not None:
        noise = read_noise(wish.noise, shape)[:count]
    else:
        noise = torch.randn(count or _COUNT, *shape, generator=random_stream(seed, "sample"))
    if audit_json is not None:
        under = chosen.name if chosen else ""
        noise = noise + recovered_shift(audit_json, candidate, loaded, under=under)
    if chosen is not None:
        model = as_deployed(model, chosen, lambda network: network.epsilon(noise[:1], 0))
    made = [
        sample_defended(model, part, settings, random_stream(seed, "sample-steps", n), defence)
        for n, part in enumerate(noise.split(_BLOCK))
    ]
    images = torch.cat(made).clamp(-1, 1)
    write_grid(out, images, columns=min(columns, len(images)))
    return out


def recovered_shift(
    audit_json: Path, number: int, loaded: LoadedDiffusion, *, under: str = ""
) -> Tensor:
    """The shift that an audit of this model recovered, ``(C, H, W)``; the strongest is number 1.

    Args:
        under: name of the compression that it was recovered under, "" for the model as it is.

    Raises:
        GenwardenError: ``sample/other-model``, ``sample/no-such-candidate``, and those of reading
            an audit.
    """
    document = read_audit_of(audit_json, loaded.sha256, "model given is")
    spec = loaded.model.sample
    if under:
        shifts = shifts_under(document, under, spec)
    else:
        shifts = diffusion_clues_of(document, spec).shifts
    if not 1 <= number <= len(shifts):
        elsewhere = [v.name for v in woken(document) if v.name != under]
        raise GenwardenError(
            "sample/no-such-candidate",
            f"There is no recovered shift {number}{f' under {under}' if under else ''} in "
            f"{audit_json}, which holds {len(shifts)}{' there' if under else ''}.",
            f"The evidence is in the compressed model: add --how {elsewhere[0]}."
            if elsewhere
            else "The findings trigger-search and, under a compression (--how), "
            "differential-trigger-search of its report show them, the strongest first.",
        )
    return shifts[number - 1]


def sampler_of(model: DiffusionModel, wish: DiffusionSampling) -> SamplerSettings:
    """The sampler that the flags ask for; without them the model's own.

    Raises:
        GenwardenError: ``usage/sampler-...``.
    """
    named = None if wish.sampler is None else sampler_by_name(wish.sampler, model.schedule)
    settings = named or model.defaults
    if wish.eta is not None and settings.name != "ddim":
        raise GenwardenError(
            "usage/sampler-settings",
            f"The sampler {settings.name} has no eta.",
            "Add --sampler ddim-50, or leave --eta away.",
        )
    if wish.eta is not None:
        settings = replace(settings, eta=wish.eta)
    return settings if wish.clip is None else replace(settings, clip=cast(Clip, wish.clip))
