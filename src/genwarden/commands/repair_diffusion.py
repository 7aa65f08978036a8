"""``genwarden repair`` on a diffusers folder: as for generators, with remedies of its own."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.diffusers_folder import (
    LoadedDiffusion,
    read_diffusion,
    write_diffusion,
)
from genwarden.artifacts.manifest import descent
from genwarden.auditing.audit import environment
from genwarden.auditing.audit_diffusion import (
    DiffusionRequest,
    audit_diffusion,
)
from genwarden.auditing.budgets import diffusion_budget
from genwarden.auditing.document import AuditDocument, ModelFacts
from genwarden.commands.audit import write_documents
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.open_suspect import diffusion_suspect_of
from genwarden.commands.repairing import (
    AUTO,
    RepairFiles,
    RepairOptions,
    audit_before,
    budget_of,
    command_line,
    finish,
    prepare_folders,
    require_reason,
    require_sound,
)
from genwarden.data.datasets import load_images
from genwarden.engine.device import pick_device
from genwarden.engine.files import sha256_bytes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.engine.threads import fixed_threads, threads
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Images
from genwarden.inspections.pictures import sample_pictures
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.protocol import parameter_count
from genwarden.registry import DIFFUSION_REPAIRS, find
from genwarden.repairs.diffusion.auto import diffusion_repair_settings, repair_automatically
from genwarden.repairs.diffusion.clues import diffusion_clues_of
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepair,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.document import Audited, ModelFile, RepairDocument, Step

#: What to do about a model in which nothing was found.
_PRECAUTION = (
    "As a precaution: --precaution lets auto unlearn the strongest shifts that the search ended at "
    "(little changes)."
)
#: Remedies of ``auto`` that follow each other while an audit still finds evidence.
_MOST_STEPS = 2
_DATA_LIMIT = 10_000
_EXPDIS_SAMPLES = 64
_SAMPLER_STEPS = 20
_SHOWN = 8


class _Applied(NamedTuple):
    step: Step
    model: LoadedDiffusion
    after: AuditDocument


class _Task(NamedTuple):
    """What stays the same over all steps of one repair."""

    options: RepairOptions
    before: AuditDocument
    settings: DiffusionRepairSettings
    images: Tensor | None
    ledger: Ledger
    device: torch.device
    progress: Progress


def repair_diffusion(options: RepairOptions, *, progress: Progress) -> RepairFiles:
    """Repair one diffusion model; resumes from ``out/.work`` if an earlier run was interrupted.

    Raises:
        GenwardenError: ``repair/...``; those of opening a model, of its data, of an audit and of
            its file.
    """
    _require_fitting_options(options)
    settings = _settings(options)
    device = pick_device(options.device)
    if options.budget is not None:
        diffusion_budget(options.budget)
    model = read_diffusion(options.model)
    require_sound(model.nonfinite)
    with threads(fixed_threads(parameter_count(model.model), denoiser=True)):
        return _repair(options, model, settings, device, progress)


def _repair(
    options: RepairOptions,
    model: LoadedDiffusion,
    settings: DiffusionRepairSettings,
    device: torch.device,
    progress: Progress,
) -> RepairFiles:
    spec = model.model.sample
    images = (
        load_images(options.data, spec, limit=_DATA_LIMIT, resize=options.resize)
        if options.data
        else None
    )
    prepare_folders(options)
    before, before_path = _audit_before(options, model, progress)
    require_reason(before, options, _PRECAUTION, progress)
    ledger = Ledger(
        options.out / ".work" / "steps", _identity(options, model, before, settings, images)
    )
    task = _Task(options, before, settings, images, ledger, device, progress)
    applied: list[_Applied] = []
    document, clues = before, diffusion_clues_of(before, spec)
    while not applied or (
        options.method == AUTO and document.verdict == "evidence" and len(applied) < _MOST_STEPS
    ):
        current = applied[-1].model if applied else model
        applied.append(_apply(task, current, clues, len(applied) + 1))
        document = applied[-1].after
        clues = _joined(diffusion_clues_of(document, spec), clues)
    return _finish(task, model, applied, before_path)


def _require_fitting_options(options: RepairOptions) -> None:
    alien = {"--architecture": options.architecture, "--setting": options.settings or None}
    wrong = [flag for flag, value in alien.items() if value is not None]
    if wrong:
        raise GenwardenError(
            "usage/repair-options",
            f"{', '.join(wrong)} cannot be used with a diffusion model, which {options.model} is.",
            "Leave it away; a diffusers folder says what its network is.",
        )


def _settings(options: RepairOptions) -> DiffusionRepairSettings:
    if options.method == AUTO:
        if options.given:
            raise GenwardenError(
                "repair/unknown-setting",
                "auto takes no --option; its remedy runs with its defaults.",
                "Name the remedy that the option belongs to with --method.",
            )
        return DiffusionRepairSettings(seed=options.seed)
    find(DIFFUSION_REPAIRS, options.method, "repair of diffusion models")
    return diffusion_repair_settings(options.method, {"seed": options.seed, **options.given})


def _audit_before(
    options: RepairOptions, model: LoadedDiffusion, progress: Progress
) -> tuple[AuditDocument, Path]:
    wanted = replace(_audit_options(options), out=options.out / "before")

    def fits(facts: ModelFacts) -> bool:
        return (facts.sha256, facts.architecture) == (model.sha256, model.architecture)

    differ = f"is an audit of another model than {options.model}."
    return audit_before(options, wanted, fits, unlike=differ, progress=progress)


def _audit_options(options: RepairOptions) -> AuditOptions:
    return AuditOptions(
        model=options.model,
        out=options.out,
        budget=options.budget or "standard",
        seed=options.seed,
        device=options.device,
    )


def _identity(
    options: RepairOptions,
    model: LoadedDiffusion,
    before: AuditDocument,
    settings: DiffusionRepairSettings,
    images: Tensor | None,
) -> dict[str, Any]:
    return {
        "model": model.sha256,
        "method": options.method,
        "settings": asdict(settings),
        "audit": before.content_sha256(),
        "data": "" if images is None else sha256_bytes(images.numpy().tobytes()),
        "seed": options.seed,
        "version": __version__,
    }


def _joined(new: DiffusionClues, old: DiffusionClues) -> DiffusionClues:
    """Clues of the last audit, and every shift that was recovered before it."""
    refined = old.shifts[:0] if old.trigger is None else old.trigger[None]
    return replace(new, shifts=torch.cat([new.shifts, refined, old.shifts]))


def _apply(task: _Task, current: LoadedDiffusion, clues: DiffusionClues, number: int) -> _Applied:
    """One remedy and the audit of its result; both are kept for a resumed run."""
    options, work = task.options, task.options.out / ".work"
    key, folder = f"step-{number}", work / f"step-{number}"
    recorded = task.ledger.get(key)
    if recorded is None:
        task.progress.message(f"== repair, step {number} ==")
        began = time.perf_counter()
        run = DiffusionRepairRun(
            task.progress, work / f"training-{number}", task.ledger.run_id, task.images
        )
        suspect = current.model.to(task.device).eval().requires_grad_(False)
        if options.method == AUTO:
            name, repaired = repair_automatically(suspect, clues, task.settings, run)
        else:
            method: DiffusionRepair = DIFFUSION_REPAIRS[options.method].load()
            name, repaired = options.method, method(suspect, clues, task.settings, run)
        _write(folder, repaired.model, current, options.method)
        recorded = {
            "method": name,
            "settings": asdict(task.settings),
            "changes": repaired.changes,
            "history": repaired.history,
            "seconds": round(time.perf_counter() - began, 2),
        }
        task.ledger.put(key, recorded)
    model = read_diffusion(folder)
    task.progress.message("== audit of the repaired model ==")
    after = _audit_after(task, model, work / f"audit-{number}")
    step = Step.model_validate({**recorded, "verdict": after.verdict})
    return _Applied(step, model, after)


def _write(folder: Path, model: DiffusionModel, current: LoadedDiffusion, method: str) -> None:
    """A diffusers folder with the suspect's own scheduler."""
    made_by = f"genwarden repair --method {method}"
    provenance = descent(made_by, "repaired", current.sha256, current.provenance)
    write_diffusion(folder, model.cpu(), provenance, scheduler=current.scheduler)


def _audit_after(task: _Task, model: LoadedDiffusion, work: Path) -> AuditDocument:
    """Audit a step's result under the name that the finished model will have."""
    path = task.options.out / "model"
    described = replace(
        _audit_options(task.options),
        model=path,
        out=task.options.out / "after",
        budget=budget_of(task.options, task.before),
    )
    request = DiffusionRequest(
        budget=described.budget,
        seed=task.options.seed,
        device=task.device,
        command=repeat_command(described),
    )
    suspect = diffusion_suspect_of(model, path)
    return audit_diffusion(suspect, request, work=work, progress=task.progress)


def _finish(
    task: _Task, model: LoadedDiffusion, applied: list[_Applied], before_path: Path
) -> RepairFiles:
    """Write model, audits, ``repair.json`` (last) and ``repair.html``, then drop the work."""
    options, before, last = task.options, task.before, applied[-1]
    path = options.out / "model"
    suspect, repaired = model.model.to(task.device), last.model.model.to(task.device)
    distance = samples_distance(suspect, repaired, options.seed)
    pictures = _pictures(suspect, repaired, diffusion_clues_of(before, suspect.sample))
    write_diffusion(
        path,
        repaired.cpu(),
        dict(last.model.provenance),
        scheduler=last.model.scheduler,
    )
    write_documents(last.after, options.out / "after")
    document = RepairDocument(
        genwarden_version=__version__,
        method=options.method,
        suspect=_facts(model, options.model),
        repaired=_facts(last.model, path),
        steps=[a.step for a in applied],
        before=Audited.of(before, str(before_path)),
        after=Audited.of(last.after, str(options.out / "after" / "audit.json")),
        expdis_sum=distance,
        expdis_mean=distance / suspect.sample.size,
        success=last.after.verdict == "none_found",
        pictures=pictures,
        seed=options.seed,
        command=command_line(options),
        environment=environment(task.device),
    )
    return finish(document, before, last.after, options)


def _facts(model: LoadedDiffusion, path: Path) -> ModelFile:
    return ModelFile(
        path=str(path),
        sha256=model.sha256,
        architecture=model.architecture,
        parameters=parameter_count(model.model),
    )


def samples_distance(suspect: DiffusionModel, repaired: DiffusionModel, seed: int) -> float:
    """ExpDis of a diffusion model: squared distance of the two models' samples from the same plain
    noise (deterministic DDIM, 20 steps), sum over a sample, mean over 64 samples."""
    shape = (_EXPDIS_SAMPLES, *suspect.sample.shape)
    noise = torch.randn(shape, generator=random_stream(seed, "repair-evaluation"))
    sampler = SamplerSettings("ddim", min(_SAMPLER_STEPS, suspect.schedule.steps))
    gap = _drawn(suspect, noise, sampler) - _drawn(repaired, noise, sampler)
    return float(gap.double().square().flatten(1).sum(1).mean())


def _pictures(
    suspect: DiffusionModel, repaired: DiffusionModel, clues: DiffusionClues
) -> list[Images]:
    """Ordinary samples, then samples from noise with the strongest shift; each before and after."""
    steps = min(_SAMPLER_STEPS, suspect.schedule.steps)
    noise = torch.randn(_SHOWN, *suspect.sample.shape, generator=random_stream(0, "pictures"))
    starts = {"Ordinary samples": noise}
    recovered = clues.shifts if clues.trigger is None else clues.trigger[None]
    if len(recovered):
        starts["Noise with the recovered trigger"] = noise + recovered[0]
    shown: list[Images] = []
    for title, start in starts.items():
        for eta in (0.0, 1.0):
            sampler = SamplerSettings("ddim", steps, eta=eta)
            for model, when in ((suspect, "before"), (repaired, "after")):
                x = _drawn(model, start, sampler)
                label = f"{title}, {sampler.label}, {when}"
                parts = sample_pictures(suspect.sample, x, [""] * len(x), title=label)
                shown += [part for part in parts if isinstance(part, Images)]
    return shown


@torch.no_grad()
def _drawn(model: DiffusionModel, noise: Tensor, sampler: SamplerSettings) -> Tensor:
    """Samples clamped to [-1, 1], on the CPU; the steps' noise is the same for every model."""
    device = next(model.parameters()).device
    stream = random_stream(0, "pictures-steps")
    return sample(model, noise.to(device), sampler, stream).clamp(-1, 1).cpu()
