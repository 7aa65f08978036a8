"""``genwarden calibrate``: audit clean models of the user's own, and keep what was scored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.budgets import classifier_budget
from genwarden.auditing.calibration import MIN_REFERENCES, needs_population, reference_key
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.doubts import doubts, too_few
from genwarden.auditing.fit import condition_of
from genwarden.auditing.own_references import (
    FILE_NAME,
    OwnReferences,
    ReferenceModel,
    Score,
    Suspected,
    write_references,
)
from genwarden.commands.audit import AuditFiles
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.audit_several import audit_several
from genwarden.commands.open_suspect import open_suspect
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress, Silent
from genwarden.errors import GenwardenError

_AUDITS = "audits"
#: Files that a user might have meant as models.
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf", ".onnx"}


@dataclass(frozen=True)
class CalibrateOptions:
    """What the user asked for; see ``genwarden calibrate --help``.

    Attributes:
        how: each model is audited; its ``model`` and ``out`` are not used.
        workers: models at a time.
    """

    models: tuple[Path, ...]
    out: Path
    how: AuditOptions
    workers: int = 1


class MadeReferences(NamedTuple):
    """What was written, and what speaks against it.

    Attributes:
        reports: of the audits, by name of the model.
        doubted: why a model may not be clean, by its name
            (:func:`genwarden.auditing.doubts.doubts`).
        too_few: inspections that too few of the models have a score of.
        following: the command line of an audit that uses the references.
    """

    path: Path
    own: OwnReferences
    reports: dict[str, Path]
    doubted: dict[str, list[str]]
    too_few: list[str]
    following: str


class _Opened(NamedTuple):
    """A model that is known to fit, before it is audited; ``sha256`` is of its files."""

    sha256: str
    suspected: Suspected


def calibrate_models(options: CalibrateOptions, *, progress: Progress) -> MadeReferences:
    """Audit each model; what the same command has audited before is not computed again.

    Raises:
        GenwardenError: ``calibrate/not-found``, ``calibrate/no-models``,
            ``calibrate/out-is-input``, ``calibrate/too-few``, ``calibrate/unlike``,
            ``calibrate/same-model``, ``calibrate/refused``, ``calibrate/compromised``,
            ``calibrate/no-scores``, ``calibrate/other-audit``, and those of
            :func:`genwarden.commands.audit_several.audit_several`.
    """
    budget_named(options.how.budget)
    paths = found_models(options.models, progress)
    _require_apart(options.out, options.models)
    if len(paths) < MIN_REFERENCES:
        raise GenwardenError(
            "calibrate/too-few",
            f"{len(paths)} models were given: {', '.join(map(str, paths))}.",
            f"Give at least {MIN_REFERENCES} clean models of the same network and sample shape, "
            "trained from different seeds; better ten, since one that stands out must be left out.",
        )
    opened = {str(path): _opened(options, path) for path in paths}
    _require_fitting(opened)
    require_writable_folder(options.out)
    wanted = {
        str(path): replace(
            options.how,
            model=path,
            out=_folder(options, path, opened[str(path)].suspected),
            keep=True,
        )
        for path in paths
    }
    found: dict[str, ReferenceModel] = {}
    reports: dict[str, Path] = {}
    for name, files in _audited(wanted, options, progress):
        document = files.document
        progress.message(f"{name}: audited")
        if document.verdict == "refused":
            raise _refused(name, " ".join(document.reasons))
        if document.model is None or document.model.sha256 != opened[name].sha256:
            raise _refused(name, "its files changed while it was audited.")
        found[name] = reference_of(name, opened[name].suspected, document)
        reports[name] = files.html_path
    models = [found[name] for name in wanted]
    path = options.out / FILE_NAME
    own = write_references(path, models, options.how.budget, options.how.seed)
    following = repeat_command(
        replace(options.how, model=Path("MODEL"), out=Path("report"), references=path)
    )
    return MadeReferences(path, own, reports, doubts(models), too_few(models), following)


def found_models(given: Sequence[Path], progress: Progress) -> list[Path]:
    """The models among ``given``, and in the folders among them, in the order of their names.

    Raises:
        GenwardenError: ``calibrate/not-found``; ``calibrate/no-models`` for a folder that is no
            model and holds none; ``calibrate/same-model`` for one that is given twice.
    """
    found: list[Path] = []
    for path in given:
        if not os.path.lexists(path):
            raise GenwardenError(
                "calibrate/not-found", f"There is nothing at {path}.", "Check the path."
            )
        if not os.path.isdir(path) or _is_model(path):  # Path.is_dir raises on names too long
            found.append(path)
            continue
        folders = sorted(one for one in path.iterdir() if one.is_dir())
        inside = [one for one in folders if _is_model(one)]
        if not inside:
            raise GenwardenError(
                "calibrate/no-models",
                f"{path} is no model folder and has none in it.",
                "Give model folders, weights files, or a folder of model folders.",
            )
        files = sorted(one for one in path.iterdir() if one.suffix in _WEIGHTS)
        if others := [one.name for one in (*folders, *files) if one not in inside]:
            progress.message(f"Left out of {path}, no model folders: {', '.join(others)}.")
        found += inside
    for path, count in Counter(one.resolve() for one in found).items():
        if count > 1:
            raise _same_model(path, path)
    return found


def _require_apart(out: Path, given: Sequence[Path]) -> None:
    """Audits among the models would be taken for models, or for what is shipped with one."""
    inside = {out.resolve(), *out.resolve().parents}
    for path in given:
        if path.resolve() in inside:
            raise GenwardenError(
                "calibrate/out-is-input",
                f"{out} lies in {path}, which is given as clean.",
                "Choose another --out folder.",
            )


def _same_model(first: Path | str, second: Path | str) -> GenwardenError:
    named = f"{first} is given twice" if first == second else f"{first} and {second} are the same"
    return GenwardenError(
        "calibrate/same-model",
        f"{named}: its scores would count twice and narrow the spread.",
        "Give each model once.",
    )


def _is_model(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).exists() or is_diffusers_folder(folder)


def _opened(options: CalibrateOptions, path: Path) -> _Opened:
    try:
        opened = open_suspect(replace(options.how, model=path), Silent())
        suspected = opened.suspected()
    except GenwardenError as error:
        if not error.code.startswith("artifact/"):
            raise
        raise _refused(path, error.cause, error.remedy) from error
    except OSError as error:  # a name that no file can have
        raise _refused(path, str(error.strerror)) from error
    if not suspected.finite:
        raise _refused(path, "it has NaN or infinite weights.")
    return _Opened(opened.sha256, suspected)


def _refused(path: Path | str, cause: str, remedy: str = "") -> GenwardenError:
    remedy = f"{remedy} Or leave this model out." if remedy else "Leave this model out."
    return GenwardenError("calibrate/refused", f"{path}: {cause}", remedy)


def _require_fitting(opened: dict[str, _Opened]) -> None:
    """Before hours of audits: all alike, and none twice."""
    kinds = Counter(str(suspect.suspected.likeness) for suspect in opened.values())
    if len(kinds) > 1:
        listed = "; ".join(f"{count} of: {kind}" for kind, count in kinds.items())
        raise GenwardenError(
            "calibrate/unlike",
            f"These are different networks: {listed}.",
            "Calibrate each kind by itself, with an --out of its own.",
        )
    seen: dict[str, str] = {}
    for path, suspect in opened.items():
        weights = suspect.suspected.weights
        if weights in seen:
            raise _same_model(seen[weights], path)
        seen[weights] = path


def _audited(
    wanted: Mapping[str, AuditOptions], options: CalibrateOptions, progress: Progress
) -> Iterator[tuple[str, AuditFiles]]:
    try:
        yield from audit_several(wanted, workers=options.workers, progress=progress)
    except GenwardenError as error:
        if error.code != "audit/other-audit":
            raise
        raise GenwardenError(
            "calibrate/other-audit",
            f"{options.out} holds audits that were asked for otherwise. {error.cause}",
            "Choose another --out folder for these references, or add --restart to audit every "
            "model anew.",
        ) from error


def _folder(options: CalibrateOptions, model: Path, suspect: Suspected) -> Path:
    """Of its audit: the same whatever other models are given."""
    name = model.stem if model.is_file() else model.name
    return options.out / _AUDITS / f"{name}-{suspect.weights[:12]}"


def reference_of(name: str, suspect: Suspected, document: AuditDocument) -> ReferenceModel:
    """What a finished audit scored, as a reference.

    Args:
        name: what the user calls the model.

    Raises:
        GenwardenError: ``calibrate/compromised`` if the audit found a structure that no clean
            model has, ``calibrate/no-scores`` if nothing in it could be scored.
    """
    found = document.judged_under()
    if structural := [j.finding.title for _, j in found if j.flagged and j.finding.structural]:
        raise GenwardenError(
            "calibrate/compromised",
            f"{name} has what no clean model has: {', '.join(structural)}.",
            "Leave this model out, and look at its report.",
        )
    scores = [
        Score(
            inspection=j.finding.inspection,
            condition=_condition(suspect, document, variant),
            score=j.finding.score,
        )
        for variant, j in found
        if j.finding.outcome == "scored" and needs_population(j.finding.inspection)
        if j.finding.score is not None
    ]
    if not scores:
        raise GenwardenError(
            "calibrate/no-scores",
            f"{name} gave nothing to compare others with: {' '.join(document.reasons)}",
            "Leave this model out.",
        )
    by_itself: list[str] = []
    by_others: list[str] = []
    for variant, j in found:
        if j.flagged and j.finding.null is not None and j.finding.null.source == "population":
            condition = _condition(suspect, document, variant)
            by_others.append(reference_key(j.finding.inspection, condition))
        elif j.flagged:
            by_itself.append(f"{j.finding.title} ({variant})" if variant else j.finding.title)
    return ReferenceModel(
        name=name,
        weights=suspect.weights,
        likeness=suspect.likeness,
        scores=scores,
        found=by_itself,
        suspected=by_others,
    )


def _condition(suspect: Suspected, document: AuditDocument, variant: str) -> str:
    """As an audit looks up references (:func:`genwarden.auditing.fit.condition_of`)."""
    if suspect.likeness.kind != "classifier":
        return variant
    wanted = classifier_budget(str(document.budget["name"])).images
    return condition_of(variant, given=document.inputs.training_images, wanted=wanted)
