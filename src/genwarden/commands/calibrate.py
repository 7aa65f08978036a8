"""``genwarden calibrate``: audit clean models of the user's own, and keep what was scored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.calibration import MIN_REFERENCES
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.own_references import (
    FILE_NAME,
    Crossed,
    OwnReferences,
    crossed,
    reference_of,
    write_references,
)
from genwarden.commands.audit import AuditOptions, audit_model
from genwarden.commands.audit_variants import parse_deploy_as
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError

_MARKS = (MANIFEST_NAME, INDEX_NAME)
_AUDITS = "audits"


@dataclass(frozen=True)
class CalibrateOptions:
    """What the user asked for; see ``genwarden calibrate --help``.

    Attributes:
        like: how each model is audited; its ``model`` and ``out`` are not used.
    """

    models: tuple[Path, ...]
    out: Path
    like: AuditOptions


class Calibrated(NamedTuple):
    """What was written, and how the models agree.

    Attributes:
        documents: the audit of each model, in the order of ``crossed``.
        following: the command line of an audit that uses the references.
    """

    path: Path
    own: OwnReferences
    crossed: list[Crossed]
    documents: list[AuditDocument]
    following: str


def calibrate_models(options: CalibrateOptions, *, progress: Progress) -> Calibrated:
    """Audit each model; one whose audit is there already is not audited again.

    Raises:
        GenwardenError: ``calibrate/no-models``, ``calibrate/too-few``, ``calibrate/refused``,
            ``calibrate/no-scores``, ``calibrate/same-model``, and those of
            :func:`genwarden.commands.audit.audit_model`.
    """
    budget_named(options.like.budget)
    parse_deploy_as(
        options.like.deploy_as, variants_only=options.like.variants_only, seed=options.like.seed
    )
    folders = found_models(options.models)
    if len(folders) < MIN_REFERENCES:
        raise GenwardenError(
            "calibrate/too-few",
            f"{len(folders)} models were given: {', '.join(map(str, folders))}.",
            f"Give at least {MIN_REFERENCES} clean models of the same architecture and sample "
            f"shape ({MIN_REFERENCES + 1} to have each judged by the others), trained from "
            "different seeds.",
        )
    require_writable_folder(options.out)
    whole = progress.task("clean models", len(folders))
    documents = []
    for number, folder in enumerate(folders, start=1):
        documents.append(_audited(options, folder, number, progress))
        whole.advance(note=folder.name)
    models = [
        reference_of(str(folder), document)
        for folder, document in zip(folders, documents, strict=True)
    ]
    path = options.out / FILE_NAME
    own = write_references(path, models, options.like.budget)
    return Calibrated(path, own, crossed(own), documents, _following(options, path))


def found_models(given: Sequence[Path]) -> list[Path]:
    """The models among ``given``, and in the folders among them, in the order of their names.

    Raises:
        GenwardenError: ``calibrate/no-models`` for a path that is no model and holds none.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir() or _is_model(path):
            found.append(path)
            continue
        inside = sorted(one for one in path.iterdir() if one.is_dir() and _is_model(one))
        if not inside:
            raise GenwardenError(
                "calibrate/no-models",
                f"{path} is no model folder and has none in it.",
                "Give model folders, weights files, or a folder of model folders.",
            )
        found += inside
    return found


def _is_model(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _audited(
    options: CalibrateOptions, model: Path, number: int, progress: Progress
) -> AuditDocument:
    out = options.out / _AUDITS / f"{number:02d}-{model.stem if model.is_file() else model.name}"
    wanted = replace(options.like, model=model, out=out, keep=True)
    document = audit_model(wanted, progress=progress).document
    if document.verdict == "refused":
        raise GenwardenError(
            "calibrate/refused", f"{model}: {' '.join(document.reasons)}", "Leave this model out."
        )
    return document


def _following(options: CalibrateOptions, path: Path) -> str:
    like = options.like
    words = ["genwarden", "audit", "MODEL", "--references", str(path), "--budget", like.budget]
    words += ["--data", like.data, *["--resize"] * like.resize] if like.data else []
    words += ["--deploy-as", like.deploy_as] if like.deploy_as else []
    return shlex.join([*words, "--out", "report"])
