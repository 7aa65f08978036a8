"""``genwarden repair``: a new model without what an audit found, and an audit of that."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genwarden import __version__
from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME, descent
from genwarden.artifacts.model_folder import LoadedModel, write_model
from genwarden.artifacts.open_model import open_model
from genwarden.auditing.audit import Request, audit, environment
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.document import AuditDocument, ModelFacts
from genwarden.commands.audit import write_documents
from genwarden.commands.audit_options import AuditOptions, repeat_command, sample_command
from genwarden.commands.open_suspect import suspect_of
from genwarden.commands.repairing import (
    AUTO,
    MOST_STEPS,
    RepairFiles,
    RepairOptions,
    audit_before,
    budget_of,
    command_line,
    finish,
    prepare_folders,
    require_data_to_scale,
    require_reason,
    require_sound,
)
from genwarden.engine.device import pick_device
from genwarden.engine.files import (
    write_atomic,
    write_tensors,
)
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.threads import fixed_threads, threads
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Images
from genwarden.inspections.pictures import sample_pictures
from genwarden.models.protocol import LatentGenerator, parameter_count
from genwarden.registry import ARCHITECTURES, REPAIRS, find
from genwarden.repairs.auto import repair_automatically, repair_settings, supports
from genwarden.repairs.clues import clues_of
from genwarden.repairs.contract import Clues, Repair, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis
from genwarden.repairs.document import Audited, ModelFile, RepairDocument, Step

__all__ = ["AUTO", "RepairFiles", "RepairOptions", "repair_model"]

#: What to do about a model in which nothing was found.
_PRECAUTION = (
    "As a precaution: --precaution lets auto take away what ordinary sampling never shows (little "
    "changes); --method widened-distillation relearns the weights from ordinary samples under a "
    "widened prior."
)
_EXPDIS_SAMPLES = 4096
_SHOWN = 8


class _Applied(NamedTuple):
    step: Step
    model: LoadedModel
    after: AuditDocument


def repair_model(options: RepairOptions, *, progress: Progress) -> RepairFiles:
    """Repair one model; resumes from ``out/.work`` if an earlier run was interrupted.

    Raises:
        GenwardenError: ``repair/...``; those of opening a model, of an audit and of its file.
    """
    require_data_to_scale(options)
    if is_diffusers_folder(options.model):
        from genwarden.commands.repair_diffusion import repair_diffusion

        return repair_diffusion(options, progress=progress)
    if options.data is not None:
        raise GenwardenError(
            "usage/repair-options",
            "--data is for diffusion models; a generator is repaired with its own samples.",
            "Leave it away.",
        )
    settings = _settings(options)
    device = pick_device(options.device)
    if options.budget is not None:
        budget_named(options.budget)
    model = open_model(options.model, architecture=options.architecture, settings=options.settings)
    require_sound(model.nonfinite)
    _require_support(options.method, model)
    with threads(fixed_threads(parameter_count(model.generator))):
        return _repair(options, model, settings, device, progress)


def _repair(
    options: RepairOptions,
    model: LoadedModel,
    settings: RepairSettings,
    device: torch.device,
    progress: Progress,
) -> RepairFiles:
    prepare_folders(options)
    before, before_path = _audit_before(options, model, progress)
    clues = clues_of(before, model.generator.latent)
    require_reason(before, options, _PRECAUTION, progress)
    suspect = model.generator.to(device).eval().requires_grad_(False)
    ledger = Ledger(options.out / ".work" / "steps", _identity(options, model, before, settings))
    applied: list[_Applied] = []
    document = before
    while not applied or (
        options.method == AUTO and document.verdict == "evidence" and len(applied) < MOST_STEPS
    ):
        current = applied[-1].model if applied else model
        taken = frozenset(a.step.method for a in applied)
        try:
            applied.append(
                _apply(options, current, clues, settings, taken, ledger, before, progress)
            )
        except GenwardenError as error:
            if not applied or error.code != "repair/none-applies":
                raise
            progress.message(error.cause)
            break
        document = applied[-1].after
        clues = clues_of(document, current.generator.latent)
    return _finish(options, model, suspect, applied, before, before_path, device)


def _settings(options: RepairOptions) -> RepairSettings:
    given = {"seed": options.seed, **options.given}
    if options.method == AUTO:
        if options.given:
            raise GenwardenError(
                "repair/unknown-setting",
                "auto takes no --option; every remedy runs with its defaults.",
                "Name the remedy that the option belongs to with --method.",
            )
        return RepairSettings(seed=options.seed)
    find(REPAIRS, options.method, "repair")
    return repair_settings(options.method, given)


def _require_support(method: str, model: LoadedModel) -> None:
    """Refuse before an audit is spent on it; lists what exists for this kind of model."""
    if method == AUTO:
        return
    known = model.architecture in ARCHITECTURES
    fitting = [
        name
        for name, row in REPAIRS.items()
        if supports(name, model.architecture) and (known or row.options["keeps"])
    ]
    if method not in fitting:
        raise GenwardenError(
            "repair/unsupported",
            f"{method} does not work on {model.architecture}.",
            f"For this model there are: {', '.join([AUTO, *fitting])}.",
        )


def _audit_before(
    options: RepairOptions, model: LoadedModel, progress: Progress
) -> tuple[AuditDocument, Path]:
    wanted = replace(_audit_options(options), out=options.out / "before")

    def fits(facts: ModelFacts) -> bool:
        return (facts.sha256, facts.architecture) == (model.sha256, model.architecture) and (
            _plain(facts.settings) == _plain(model.settings)
        )

    differ = f"is an audit of another model (weights or settings differ from {options.model})."
    return audit_before(options, wanted, fits, unlike=differ, progress=progress)


def _plain(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=list)


def _identity(
    options: RepairOptions, model: LoadedModel, before: AuditDocument, settings: RepairSettings
) -> dict[str, Any]:
    return {
        "model": model.sha256,
        "architecture": model.architecture,
        "model_settings": _plain(model.settings),
        "method": options.method,
        "settings": asdict(settings),
        "audit": before.content_sha256(),
        "seed": options.seed,
        "version": __version__,
    }


def _apply(
    options: RepairOptions,
    current: LoadedModel,
    clues: Clues,
    settings: RepairSettings,
    taken: frozenset[str],
    ledger: Ledger,
    before: AuditDocument,
    progress: Progress,
) -> _Applied:
    """One remedy and the audit of its result; both are kept for a resumed run."""
    number = len(taken) + 1
    key, folder = f"step-{number}", options.out / ".work" / f"step-{number}"
    recorded = ledger.get(key)
    if recorded is None:
        progress.message(f"== repair, step {number} ==")
        began = time.perf_counter()
        run = RepairRun(progress, options.out / ".work" / f"training-{number}", ledger.run_id)
        device = pick_device(options.device)
        generator = current.generator.to(device).eval().requires_grad_(False)
        name, repaired = _run(options, generator, current, clues, settings, taken, run)
        _write(folder, repaired, current, name)
        used = settings if options.method != AUTO else repair_settings(name, asdict(settings))
        recorded = {
            "method": name,
            "settings": asdict(used),
            "changes": repaired.changes,
            "history": repaired.history,
            "architecture": repaired.architecture or current.architecture,
            "seconds": round(time.perf_counter() - began, 2),
        }
        ledger.put(key, recorded)
    model = _reopen(folder, str(recorded["architecture"]), current)
    progress.message("== audit of the repaired model ==")
    after = _audit_after(options, model, before, folder.parent / f"audit-{number}", progress)
    step = Step(
        method=recorded["method"],
        settings=recorded["settings"],
        changes=recorded["changes"],
        history=recorded["history"],
        verdict=after.verdict,
        seconds=recorded["seconds"],
    )
    return _Applied(step, model, after)


def _run(
    options: RepairOptions,
    generator: LatentGenerator,
    current: LoadedModel,
    clues: Clues,
    settings: RepairSettings,
    taken: frozenset[str],
    run: RepairRun,
) -> tuple[str, Repaired]:
    if options.method == AUTO:
        return repair_automatically(
            generator, current.architecture, clues, settings, run, without=taken
        )
    method: Repair = REPAIRS[options.method].load()
    return options.method, method(generator, clues, settings, run)


def _write(folder: Path, repaired: Repaired, current: LoadedModel, method: str) -> None:
    """A model folder; a bare weights file for a network that the user's own factory builds."""
    architecture = repaired.architecture or current.architecture
    if architecture in ARCHITECTURES:
        write_model(folder, repaired.generator, architecture, _provenance(current, method))
        return
    network = getattr(repaired.generator, "network", repaired.generator)
    write_tensors(folder / WEIGHTS_NAME, network.state_dict())


def _provenance(current: LoadedModel, method: str) -> dict[str, Any]:
    made_by = f"genwarden repair --method {method}"
    return descent(made_by, "repaired", current.sha256, current.provenance)


def _reopen(folder: Path, architecture: str, current: LoadedModel) -> LoadedModel:
    if architecture in ARCHITECTURES:
        return open_model(folder)
    return open_model(
        folder / WEIGHTS_NAME, architecture=architecture, settings=dict(current.settings)
    )


def _audit_options(options: RepairOptions) -> AuditOptions:
    return AuditOptions(
        model=options.model,
        out=options.out,
        budget=options.budget or "standard",
        seed=options.seed,
        device=options.device,
        architecture=options.architecture,
        settings=options.settings,
    )


def _audit_after(
    options: RepairOptions,
    model: LoadedModel,
    before: AuditDocument,
    work: Path,
    progress: Progress,
) -> AuditDocument:
    """Audit a step's result under the name that the finished model will have."""
    path = _model_path(options, model.architecture)
    described = replace(
        _audit_options(options),
        model=path,
        out=options.out / "after",
        budget=budget_of(options, before),
        architecture=None if model.architecture in ARCHITECTURES else model.architecture,
        settings={} if model.architecture in ARCHITECTURES else options.settings,
    )
    request = Request(
        budget=described.budget,
        seed=options.seed,
        device=pick_device(options.device),
        command=repeat_command(described),
        sample_command=sample_command(described),
    )
    return audit(suspect_of(model, path), request, work=work, progress=progress)


def _model_path(options: RepairOptions, architecture: str) -> Path:
    return options.out / ("model" if architecture in ARCHITECTURES else WEIGHTS_NAME)


def _finish(
    options: RepairOptions,
    model: LoadedModel,
    suspect: LatentGenerator,
    applied: list[_Applied],
    before: AuditDocument,
    before_path: Path,
    device: torch.device,
) -> RepairFiles:
    """Write model, audits, ``repair.json`` (last) and ``repair.html``, then drop the work."""
    last = applied[-1]
    repaired = last.model.generator.to(device)
    distance = expdis(suspect, repaired, options.seed, _EXPDIS_SAMPLES)
    path = _model_path(options, last.model.architecture)
    source = options.out / ".work" / f"step-{len(applied)}"
    for name in (WEIGHTS_NAME, MANIFEST_NAME):  # the manifest last: it makes the folder a model
        if (source / name).exists():
            target = path / name if last.model.architecture in ARCHITECTURES else path
            write_atomic(target, (source / name).read_bytes())
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
        pictures=_pictures(suspect, repaired, clues_of(before, suspect.latent), device),
        seed=options.seed,
        command=command_line(options),
        environment=environment(device),
    )
    return finish(document, before, last.after, options)


def _facts(model: LoadedModel, path: Path) -> ModelFile:
    return ModelFile(
        path=str(path),
        sha256=model.sha256,
        architecture=model.architecture,
        parameters=parameter_count(model.generator),
    )


@torch.no_grad()
def _pictures(
    suspect: LatentGenerator, repaired: LatentGenerator, clues: Clues, device: torch.device
) -> list[Images]:
    """Ordinary samples, then outputs at recovered latents; each before and after."""
    ordinary = suspect.latent.sample(_SHOWN, generator=torch.Generator().manual_seed(0))
    rows = [("Ordinary samples", ordinary), ("At recovered latents", clues.latents[:_SHOWN])]
    shown: list[Images] = []
    for title, z in rows:
        if len(z):
            for network, when in ((suspect, "before"), (repaired, "after")):
                x = network(z.to(device)).cpu()
                parts = sample_pictures(suspect.sample, x, [""] * len(x), title=f"{title}, {when}")
                shown += [part for part in parts if isinstance(part, Images)]
    return shown
