"""What the repair of a generator and that of a diffusion model share: options, folders, files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from genwarden import __version__
from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.document import AuditDocument, ModelFacts
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.report import read_document
from genwarden.engine.files import (
    remove_file,
    remove_folder,
    require_writable_folder,
    write_atomic,
    write_json,
)
from genwarden.engine.progress import Progress
from genwarden.errors import ExitCode, GenwardenError
from genwarden.repairs.document import RepairDocument
from genwarden.reports.advice import advice as advice_on
from genwarden.reports.advice import sleeps, woken
from genwarden.reports.repair import render_repair

AUTO = "auto"
MOST_STEPS = 3
_REMEDIES = "Use `genwarden compress MODEL --how X --remedy finetuned --out DIR`."
#: All that a repair writes in its folder.
_FILES = ("repair.json", "repair.html", WEIGHTS_NAME)
_FOLDERS = ("before", "model", "after", ".work")


@dataclass(frozen=True)
class RepairOptions:
    """What the user asked for; see ``genwarden repair --help``."""

    model: Path
    out: Path
    audit_json: Path | None = None
    method: str = AUTO
    given: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None
    precaution: bool = False
    seed: int = 0
    device: str = "auto"
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    restart: bool = False
    data: str | None = None
    resize: bool = False


class RepairFiles(NamedTuple):
    """The document, the audit of the result, and where everything was written."""

    document: RepairDocument
    after: AuditDocument
    model_path: Path
    json_path: Path
    html_path: Path


def require_data_to_scale(options: RepairOptions) -> None:
    """``--resize`` without ``--data`` would do nothing.

    Raises:
        GenwardenError: ``usage/repair-options``.
    """
    if options.resize and options.data is None:
        raise GenwardenError(
            "usage/repair-options",
            "--resize scales the images of --data, and none were given.",
            "Leave --resize away.",
        )


def prepare_folders(options: RepairOptions) -> None:
    """Folders: nothing of the input is in reach of what is written, nor anything foreign."""
    source, out = options.model.resolve(), options.out.resolve()
    audit_json = options.audit_json.resolve() if options.audit_json else None
    written = [options.out / name for name in (*_FOLDERS, *_FILES)]
    shared = out == source or source in out.parents
    for path in written:
        real = path.resolve()
        shared |= path.is_symlink() or real == source or real in source.parents
        shared |= source in real.parents
        if audit_json is not None and path.name != "before":
            shared |= real == audit_json or real in audit_json.parents
    if shared:
        raise GenwardenError(
            "repair/overwrites-input",
            f"What a repair writes in {options.out} would share files with its input.",
            "Choose an empty --out folder away from the model and its audit; a repair never "
            "touches its input.",
        )
    require_writable_folder(options.out)
    ours = (options.out / "repair.json").exists() or (options.out / ".work" / "ours").exists()
    foreign = [path.name for path in written if path.exists()]
    if foreign and not ours:
        raise GenwardenError(
            "repair/not-ours",
            f"{options.out} holds {', '.join(foreign)} of something else.",
            "Choose another --out folder; nothing there was changed.",
        )
    if options.restart:
        for name in _FILES:  # repair.json first: without it, the folder no longer looks finished
            remove_file(options.out / name)
        for name in _FOLDERS:
            holds_input = audit_json is not None and out / name in audit_json.parents
            if not holds_input:  # only out/before may
                remove_folder(options.out / name)
    if (options.out / "repair.json").exists():
        remove_folder(options.out / ".work")  # stopped between the last file and this
        raise GenwardenError(
            "repair/finished",
            f"{options.out} holds a finished repair already.",
            "Choose another --out folder, or add --restart to begin anew.",
        )
    write_atomic(options.out / ".work" / "ours", b"")


def answers(document: AuditDocument | None, wanted: AuditOptions) -> bool:
    """Whether a document found in the folder is the audit that would be made now."""
    return document is not None and (
        (document.budget["name"], document.seed, document.genwarden_version)
        == (wanted.budget, wanted.seed, __version__)
    )


def require_sound(nonfinite: Mapping[str, int]) -> None:
    """Refuse weights that hold NaN or infinity, by tensor.

    Raises:
        GenwardenError: ``repair/nonfinite-weights``.
    """
    if nonfinite:
        raise GenwardenError(
            "repair/nonfinite-weights",
            f"Weights are NaN or infinite (in {sorted(nonfinite)[0]}).",
            "Ask for a sound copy of the model; there is nothing to keep in this one.",
        )


def audit_before(
    options: RepairOptions,
    wanted: AuditOptions,
    fits: Callable[[ModelFacts], bool],
    *,
    unlike: str,
    progress: Progress,
) -> tuple[AuditDocument, Path]:
    """The audit that the user gave, that of an interrupted run of the same request, or a new one.

    Args:
        wanted: the audit that would be made.
        fits: whether an audit is of the model that is repaired.
        unlike: the sentence, after the path, about an audit that is not.

    Raises:
        GenwardenError: ``repair/other-model``, ``usage/budget`` and those of reading the file.
    """
    path = options.audit_json or wanted.out / "audit.json"
    document = None
    if options.audit_json is not None or path.exists():
        document = read_document(path)
        budget_named(str(document.budget.get("name")))
    if options.audit_json is None and not answers(document, wanted):
        progress.message("== audit of the model as it is ==")
        # Of an earlier request: the folder is the repair's own.
        wanted = replace(wanted, restart=path.exists())
        document = audit_model(wanted, progress=progress).document
    if document is None or document.model is None or not fits(document.model):
        raise GenwardenError(
            "repair/other-model",
            f"{path} {unlike}",
            "Give the audit.json of this model, or leave --audit away to make one.",
        )
    if document.inputs.references:
        progress.message(
            f"{path} was judged by references of your own; what is repaired is audited by the "
            "shipped ones, so that the two verdicts do not compare. Audit OUT/model by yours "
            "afterwards: genwarden audit OUT/model --references DIR."
        )
    return document, path


def require_reason(
    document: AuditDocument, options: RepairOptions, advice: str, progress: Progress
) -> None:
    """Leave a model alone in which nothing was found, unless the user insists.

    Raises:
        GenwardenError: ``repair/nothing-found``, with ``advice``; ``repair/only-compressed`` where
            the evidence lies in compressed variants, which no repair looks at.
    """
    if sleeps(document):
        names = ", ".join(variant.name for variant in woken(document))
        text = f"The evidence is in what {names} makes of the model; repairs work on it as it is."
        if options.method == AUTO and not options.precaution:
            raise GenwardenError(
                "repair/only-compressed",
                text,
                "; ".join(advice_on(document).commands) or _REMEDIES,
                ExitCode.INCONCLUSIVE,
            )
        progress.message(f"{text} Repairing the model as it is; audit the result with --deploy-as.")
    if document.verdict == "none_found":
        text = "The audit found no evidence of a backdoor: nothing is known to be wrong."
        if options.method == AUTO and not options.precaution:
            raise GenwardenError("repair/nothing-found", text, advice, ExitCode.INCONCLUSIVE)
        progress.message(f"{text} Repairing as a precaution.")
    elif document.verdict == "inconclusive":
        progress.message("The audit was inconclusive; repairing without a verdict.")


def finish(
    document: RepairDocument,
    before: AuditDocument,
    after: AuditDocument,
    options: RepairOptions,
) -> RepairFiles:
    """Write ``repair.html`` and ``repair.json`` (last), then drop the work."""
    json_path, html_path = options.out / "repair.json", options.out / "repair.html"
    beside = (options.out / "before" / "audit.html").exists()
    page = render_repair(
        document, before, after, before_report="before/audit.html" if beside else None
    )
    write_atomic(html_path, page.encode())
    write_json(json_path, document.model_dump(mode="json"))
    remove_folder(options.out / ".work")
    return RepairFiles(document, after, Path(document.repaired.path), json_path, html_path)


def budget_of(options: RepairOptions, before: AuditDocument) -> str:
    """Budget of the audits after: as asked for, or that of the one before."""
    return options.budget or str(before.budget["name"])


def command_line(options: RepairOptions) -> str:
    """The command line that repeats the repair."""
    words = ["genwarden", "repair", str(options.model)]
    if options.audit_json:
        words += ["--audit", str(options.audit_json)]
    words += ["--method", options.method]
    for flag, values in (("--option", options.given), ("--setting", options.settings)):
        for key, value in values.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [flag, f"{key}={text}"]
    if options.architecture:
        words += ["--architecture", options.architecture]
    if options.budget:
        words += ["--budget", options.budget]
    if options.precaution:
        words += ["--precaution"]
    if options.data:
        words += ["--data", options.data, *["--resize"] * options.resize]
    if options.device != "auto":
        words += ["--device", options.device]
    return shlex.join([*words, "--seed", str(options.seed), "--out", str(options.out)])
