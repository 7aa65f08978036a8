"""Opening the model that is audited, of any kind, and what the user gave beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion
from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.model_folder import LoadedModel
from genwarden.artifacts.open_classifier import opens_as_classifier
from genwarden.artifacts.open_model import open_model
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.weights_file import parse_weights
from genwarden.auditing.audit import Request, Suspect, audit
from genwarden.auditing.audit_diffusion import (
    DiffusionRequest,
    DiffusionSuspect,
    audit_diffusion,
)
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.own_references import Suspected, hash_of, suspected_of
from genwarden.commands.audit_options import AuditOptions, repeat_command, sample_command
from genwarden.commands.audit_variants import parse_deploy_as
from genwarden.commands.open_classifier_suspect import open_classifier_suspect
from genwarden.commands.opened import Opened, Run, whole
from genwarden.compression.contract import Compressor
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.images import NamedImages, read_images
from genwarden.engine.choice import EngineChoice
from genwarden.engine.device import pick_device
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.engine.threads import fixed_threads
from genwarden.errors import GenwardenError
from genwarden.models.protocol import parameter_count


def open_suspect(options: AuditOptions, progress: Progress) -> Opened:
    """Open a model of any kind, as its audit does.

    Raises:
        GenwardenError: ``usage/...`` for options that do not fit it; ``artifact/...`` for a model
            that is refused.
    """
    device = pick_device(options.device)
    diffusion = is_diffusers_folder(options.model)
    classifier = not diffusion and opens_as_classifier(
        options.model, options.architecture, options.settings
    )
    _require_fitting_options(options, diffusion=diffusion, classifier=classifier)
    variants = parse_deploy_as(
        options.deploy_as, variants_only=options.variants_only, seed=options.seed
    )
    if diffusion:
        return _open_diffusion(options, variants, device, progress)
    if classifier:
        return open_classifier_suspect(options, variants, device, progress)
    return _open_generator(options, variants, device, progress)


def _open_generator(
    options: AuditOptions,
    variants: tuple[Compressor, ...],
    device: torch.device,
    progress: Progress,
) -> Opened:
    """Open a generator."""
    model = open_model(options.model, architecture=options.architecture, settings=options.settings)
    suspect = suspect_of(model, options.model)

    def suspected() -> Suspected:
        generator = model.generator
        law = generator.latent
        return suspected_of(
            "generator",
            generator,
            model.architecture,
            generator.sample.shape,
            latent=f"{law.distribution} {law.size}",
            settings=hash_of(model.settings),
        )

    def prepare(references: GivenReferences | None) -> Run:
        targets, training = _inputs(options, model)
        request = Request(
            budget=options.budget,
            seed=options.seed,
            device=device,
            targets=targets,
            training=training,
            inputs_sha256=_fingerprint(targets, training),
            command=repeat_command(options),
            sample_command=sample_command(options),
            deploy_as=variants,
            variants_only=options.variants_only,
            threads=options.threads,
            scan_precision=options.scan_precision,
            references=references,
        )
        return lambda work, executor: audit(
            suspect, request, work=work, progress=progress, executor=executor
        )

    return Opened(model.sha256, fixed_threads(parameter_count(model.generator)), suspected, prepare)


def _open_diffusion(
    options: AuditOptions,
    variants: tuple[Compressor, ...],
    device: torch.device,
    progress: Progress,
) -> Opened:
    """Open a diffusion model."""
    loaded = read_diffusion(options.model)
    suspect = diffusion_suspect_of(loaded, options.model, loaded.notes)

    def suspected() -> Suspected:
        schedule = loaded.model.schedule
        return suspected_of(
            "diffusion",
            loaded.model,
            loaded.architecture,
            loaded.model.sample.shape,
            timesteps=schedule.steps,
            prediction=schedule.prediction,
            schedule=hash_of(schedule.a.tolist()),
        )

    def prepare(references: GivenReferences | None) -> Run:
        if options.base and not is_diffusers_folder(options.base):
            raise GenwardenError(
                "usage/base-kind",
                f"{options.base} is no diffusers folder.",
                "Give a clean diffusion model of the same shape, or leave --base out.",
            )
        base = read_diffusion(options.base) if options.base else None
        if base is not None and base.model.sample != loaded.model.sample:
            raise GenwardenError(
                "usage/base-shape",
                f"{options.base} makes images of shape {base.model.sample.shape}, the model "
                f"{loaded.model.sample.shape}.",
                "Give a clean model of the same shape, best the one that this one started from.",
            )
        if base is not None and (base.nonfinite or base.model.schedule != loaded.model.schedule):
            raise GenwardenError(
                "usage/base-unlike",
                f"{options.base} has NaN in its weights or another noise schedule than the model.",
                "Give a sound clean model with the same timesteps and betas.",
            )
        noise = read_noise(options.noise, loaded.model.sample.shape) if options.noise else None
        request = DiffusionRequest(
            budget=options.budget,
            seed=options.seed,
            device=device,
            base=base.model if base else None,
            base_sha256=base.sha256 if base else "",
            noise=noise,
            inputs_sha256=_fingerprint(None, noise) + (base.sha256 if base else ""),
            command=repeat_command(options),
            deploy_as=variants,
            variants_only=options.variants_only,
            threads=options.threads,
            references=references,
        )
        return whole(lambda work: audit_diffusion(suspect, request, work=work, progress=progress))

    return Opened(
        loaded.sha256,
        fixed_threads(parameter_count(loaded.model), denoiser=True),
        suspected,
        prepare,
    )


def read_noise(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Initial noise ``(count, C, H, W)`` from a file with one tensor.

    Raises:
        GenwardenError: ``usage/noise-shape``, ``usage/noise-not-finite``, or ``artifact/...``.
    """
    tensors = parse_weights(read_once(path), str(path))
    found = [tuple(tensor.shape) for tensor in tensors.values()]
    fitting = len(found) == 1 and found[0][-len(shape) :] == shape
    if not fitting or len(found[0]) not in {len(shape), len(shape) + 1} or 0 in found[0]:
        raise GenwardenError(
            "usage/noise-shape",
            f"{path} holds tensors of the shapes {found}; the model starts from {shape}.",
            "Give a safetensors file with one tensor: a noise of that shape, or a batch of them.",
        )
    (noise,) = tensors.values()
    if noise.dtype not in {torch.float32, torch.float64}:
        raise GenwardenError(
            "usage/noise-dtype",
            f"{path} holds {str(noise.dtype).removeprefix('torch.')} numbers; so coarse a noise "
            "repeats values and is no exact draw of N(0, 1).",
            "Give the noise in float32 or float64, as it was drawn.",
        )
    if not torch.isfinite(noise).all():
        raise GenwardenError(
            "usage/noise-not-finite",
            f"{path} holds NaN or infinite values.",
            "Give the noise that you were told to start from.",
        )
    return noise.float().reshape(-1, *shape)


def _require_fitting_options(options: AuditOptions, *, diffusion: bool, classifier: bool) -> None:
    alien: dict[str, object] = (
        {
            "--target": options.targets,
            "--data": options.data,
            "--architecture": options.architecture,
            "--setting": options.settings or None,
            "--resize": options.resize or None,
        }
        if diffusion
        else {"--base": options.base, "--noise": options.noise}
    )
    if classifier:
        alien["--target"] = options.targets
    if diffusion or classifier:
        alien["--scan-precision"] = _other(options.scan_precision, "float32")
        alien["--engine, --workers"] = None if options.engine == EngineChoice() else options.engine
    wrong = [flag for flag, value in alien.items() if value is not None]
    if wrong:
        kind = "a diffusion model" if diffusion else "a classifier" if classifier else "a generator"
        raise GenwardenError(
            "usage/audit-options",
            f"{', '.join(wrong)} cannot be used with {kind}, which {options.model} is.",
            "Leave it away; see `genwarden audit --help`.",
        )
    if options.resize and options.data is None:
        raise GenwardenError(
            "usage/audit-options", "--resize scales the images of --data.", "Add --data FOLDER."
        )
    if options.variants_only and (options.base or options.noise):
        raise GenwardenError(
            "usage/audit-options",
            "--base and --noise are looked at beside the model as it is, which --variants-only "
            "leaves out.",
            "Leave --variants-only away, or --base and --noise.",
        )


def _other(value: str, default: str) -> str | None:
    return None if value == default else value


def suspect_of(model: LoadedModel, path: Path | str) -> Suspect:
    """What an audit is given of an opened model, under the path that the user knows it by."""
    return Suspect(
        generator=model.generator,
        architecture=model.architecture,
        settings=model.settings,
        sha256=model.sha256,
        nonfinite=model.nonfinite,
        path=str(path),
    )


def diffusion_suspect_of(
    loaded: LoadedDiffusion, path: Path | str, notes: tuple[str, ...] = ()
) -> DiffusionSuspect:
    """The same of an opened diffusers folder; ``notes`` of the reader go into the report."""
    return DiffusionSuspect(
        model=loaded.model,
        architecture=loaded.architecture,
        settings=loaded.settings,
        sha256=loaded.sha256,
        nonfinite=loaded.nonfinite,
        path=str(path),
        notes=notes,
    )


def _inputs(options: AuditOptions, model: LoadedModel) -> tuple[NamedImages | None, Tensor | None]:
    sample = model.generator.sample
    targets = read_images(options.targets, sample) if options.targets else None
    training = None
    if options.data:
        images = load_images(options.data, sample, limit=options.data_limit, resize=options.resize)
        training = to_unit_range(images)
    return targets, training


def _fingerprint(targets: NamedImages | None, training: torch.Tensor | None) -> str:
    content = b""
    if targets is not None:
        content += repr(targets.names).encode() + targets.images.numpy().tobytes()
    if training is not None:
        content += training.numpy().tobytes()
    return sha256_bytes(content) if content else ""
