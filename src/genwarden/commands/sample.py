"""``genwarden sample``: ordinary samples, or a candidate of an audit, as a picture or a sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.model_folder import LoadedModel
from genwarden.artifacts.open_model import open_model
from genwarden.auditing.candidates import flagged_latents
from genwarden.auditing.document import AuditDocument
from genwarden.commands.as_deployed import as_deployed
from genwarden.commands.report import read_audit_of, read_document
from genwarden.commands.sample_diffusion import DiffusionSampling, sample_diffusion
from genwarden.compression.how import compressor
from genwarden.data.audio import spectrograms, write_wav
from genwarden.data.grids import write_grid
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.wavegan import WaveGAN
from genwarden.reports.advice import woken

_COUNT = 64


@torch.no_grad()
def sample_grid(
    model: Path,
    out: Path,
    *,
    count: int | None,
    columns: int,
    seed: int,
    architecture: str | None,
    settings: dict[str, Any],
    audit_json: Path | None = None,
    candidate: int | None = None,
    diffusion: DiffusionSampling | None = None,
    how: str | None = None,
) -> Path:
    """Draw ``count`` samples from the model's own latent law and write them as a PNG grid.

    A diffusion model (diffusers folder) is sampled as ``diffusion`` says.

    With ``audit_json``, the sample at the latent of one candidate of that audit (the first unless
    ``candidate`` says which) instead.

    With ``how``, the samples of the compressed model: ordinary ones, or with ``audit_json`` what
    the audit found under that compression.

    Clips are written as one WAV file, one after another, if ``out`` ends in ``.wav``; otherwise
    the picture shows their spectrograms and the WAV file of the same name is written beside it.

    Raises:
        GenwardenError: ``usage/candidate`` if count, audit and candidate contradict each other,
            ``usage/sample-options`` for flags of another kind of model, those of
            :func:`candidate_latent` and of a compression, ``sample/not-images`` for a WAV file of
            images and for audio models whose samples per second are not known, and those of opening
            a model.
    """
    chosen = None if how is None else compressor(how, seed=_seed_of(audit_json, seed))
    if is_diffusers_folder(model):
        _refuse(
            "a diffusion model",
            {
                "--architecture": architecture is not None,
                "--setting": bool(settings),
            },
        )
        _require_audit(audit_json, candidate)
        return sample_diffusion(
            model,
            out,
            diffusion or DiffusionSampling(),
            count=count,
            columns=columns,
            seed=seed,
            audit_json=audit_json,
            candidate=1 if candidate is None else candidate,
            chosen=chosen,
        )
    _refuse("a generator", dict.fromkeys(diffusion.flags() if diffusion else (), True))
    _require_audit(audit_json, candidate)
    if audit_json is not None and count is not None:
        raise GenwardenError(
            "usage/candidate",
            "--audit makes the one sample of a candidate, --count asks for ordinary ones.",
            "Leave one of them away.",
        )
    opened = open_model(model, architecture=architecture, settings=settings)
    generator = opened.generator
    audible = isinstance(generator, WaveGAN)
    sound = out.suffix.lower() == ".wav"
    if audible is not (generator.sample.modality == "audio") or (sound and not audible):
        raise GenwardenError(
            "sample/not-images",
            f"{model} makes {generator.sample.modality} that cannot be written as {out.name}.",
            "Image models are drawn as PNG, WaveGANs also as WAV.",
            ExitCode.INCONCLUSIVE,
        )
    if audit_json is None:
        z = generator.latent.sample(count or _COUNT, generator=random_stream(seed, "sample"))
    else:
        number, under = candidate or 1, chosen.name if chosen else ""
        z = candidate_latent(audit_json, number, opened, under=under)
    if chosen is not None:
        two = generator.latent.sample(2, generator=random_stream(0, "compression-layout"))
        generator = as_deployed(generator, chosen, lambda network: network(two))
    samples = torch.cat([generator(part) for part in z.split(256)])
    if isinstance(generator, WaveGAN):
        write_wav(out.with_suffix(".wav"), samples, generator.sample_rate)
        samples = spectrograms(samples)
    if not sound:
        write_grid(out, samples, columns=min(columns, len(samples)))
    return out


def _refuse(kind: str, given: dict[str, bool]) -> None:
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong:
        raise GenwardenError(
            "usage/sample-options",
            f"{', '.join(wrong)} cannot be used with {kind}.",
            "Leave it away; see `genwarden sample --help`.",
        )


def _require_audit(audit_json: Path | None, candidate: int | None) -> None:
    if audit_json is None and candidate is not None:
        raise GenwardenError(
            "usage/candidate",
            "--candidate is a number in an audit, and no audit is given.",
            "Add --audit with the audit.json of this model.",
        )


def _seed_of(audit_json: Path | None, seed: int) -> int:
    """Of compressions that round at random: that of the audit, which made the variant."""
    return seed if audit_json is None else read_document(audit_json).seed


def candidate_latent(
    audit_json: Path, number: int, model: LoadedModel, *, under: str = ""
) -> Tensor:
    """The latent of a candidate, ``(1, *latent.shape)``.

    Args:
        number: from 1, in the order of the report.
        under: name of the compression that it was found under, "" for the model as it is.

    Raises:
        GenwardenError: ``sample/other-model`` if the audit was not of these weights,
            ``sample/no-such-candidate``, ``sample/latent-shape``, and those of reading an audit.
    """
    document = read_audit_of(audit_json, model.sha256, "weights given are")
    found = _latents(document, under)
    held = len(found)
    if not 1 <= number <= held:
        holds = f"numbers 1 to {held}" if held > 1 else "number 1" if held else "no candidate"
        elsewhere = [v.name for v in woken(document) if v.name != under]
        raise GenwardenError(
            "sample/no-such-candidate",
            f"There is no candidate {number}{f' under {under}' if under else ''} in {audit_json}, "
            f"which holds {holds}{' there' if under else ''}.",
            f"The evidence is in the compressed model: add --how {elsewhere[0]}."
            if elsewhere and not held
            else "See the candidates with `genwarden report`; only an audit that found evidence "
            "has any.",
        )
    latent = found[number - 1]
    if len(latent) != model.generator.latent.size:
        raise GenwardenError(
            "sample/latent-shape",
            f"Candidate {number} of {audit_json} has {len(latent)} numbers, a latent of this model "
            f"{model.generator.latent.size}.",
            "Give the same --architecture and --setting as in the audit, and an unedited file.",
        )
    return torch.tensor(latent).reshape(1, *model.generator.latent.shape)


def _latents(document: AuditDocument, under: str) -> list[list[float]]:
    """Latents of the candidates; of a compressed variant, those of its flagged findings."""
    if not under:
        return [candidate.latent for candidate in document.candidates]
    judged = [j for v in document.variants if v.name == under for j in v.findings]
    return [values for _, values in flagged_latents(judged)]
