"""``genwarden audit``: open, inspect, decide, and write ``audit.json`` and ``audit.html``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from genwarden.auditing.audit import refused
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.given_references import suitable_references
from genwarden.commands.audit_folder import require_own_folder
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.open_suspect import open_suspect
from genwarden.engine.choice import open_executor
from genwarden.engine.files import (
    remove_file,
    remove_folder,
    require_writable_folder,
    write_atomic,
    write_json,
)
from genwarden.engine.progress import Progress
from genwarden.engine.threads import threads
from genwarden.errors import GenwardenError
from genwarden.reports.html import render_html

#: Codes with this prefix mean that the model itself was refused; the refusal is a verdict and
#: gets a document of its own.
_REFUSAL_PREFIX = "artifact/"
#: What does not agree with a bare file may as well be the architecture that the user named.
_DISAGREEMENTS = {"artifact/wrong-architecture", "artifact/bad-settings", "artifact/data-parallel"}


class AuditFiles(NamedTuple):
    """The document and where it was written."""

    document: AuditDocument
    json_path: Path
    html_path: Path


def audit_model(options: AuditOptions, *, progress: Progress) -> AuditFiles:
    """Audit one model; resumes from ``out/.work`` if an earlier run was interrupted.

    Raises:
        GenwardenError: wrong usage, unreadable targets or data, an output folder that cannot be
            written or holds an audit of something else. A refused *model* is not raised: it is a
            document with verdict ``refused``.
    """
    budget_named(options.budget)
    if options.model.is_dir() and options.out.resolve() == options.model.resolve():
        raise GenwardenError(
            "usage/out-is-model",
            f"{options.out} is the model's own folder; what is shipped with it could be believed.",
            "Choose another --out folder.",
        )
    command = repeat_command(options)
    try:
        opened = open_suspect(options, progress)
    except GenwardenError as error:
        if not error.code.startswith(_REFUSAL_PREFIX) or error.code == "artifact/not-found":
            raise
        if options.architecture is not None and error.code in _DISAGREEMENTS:
            # The file is sound; what the user said of it is another network.
            raise GenwardenError(
                error.code.replace(_REFUSAL_PREFIX, "usage/"), error.cause, error.remedy
            ) from error
        if not options.restart:
            require_own_folder(options.out, command, None)
        require_writable_folder(options.out)
        document = refused(
            error,
            path=options.model,
            budget=options.budget,
            seed=options.seed,
            command=command,
        )
        return write_documents(document, options.out)
    if not options.restart:
        require_own_folder(options.out, command, opened.sha256)
    # What the user gave beside the model: if that is refused, the model is not.
    references = None
    if options.references is not None:
        references = suitable_references(
            options.references, opened.suspected(), options.budget, options.seed
        )
    run = opened.prepare(references)
    require_writable_folder(options.out)
    work = options.out / ".work"
    # What the same command has found in the same model stays until this run replaces it; an
    # interruption of --restart must not leave another's verdict.
    if options.restart:
        for stale in ("audit.json", "audit.html"):
            remove_file(options.out / stale)
        remove_folder(work)
    count = options.threads or opened.threads
    with threads(count), open_executor(options.engine, cpus=count) as executor:
        document = run(work, executor)
    files = write_documents(document, options.out)
    # What failed must not be kept: the same command tries it again.
    if not options.keep or _failed(document):
        remove_folder(work)
    return files


def _failed(document: AuditDocument) -> bool:
    """Whether any inspection broke."""
    return any(judged.finding.outcome == "failed" for _, judged in document.judged_under())


def write_documents(document: AuditDocument, out: Path) -> AuditFiles:
    """Write ``audit.json``, last, after the HTML report made from it."""
    json_path, html_path = out / "audit.json", out / "audit.html"
    write_atomic(html_path, render_html(document).encode())
    write_json(json_path, document.model_dump(mode="json"))
    return AuditFiles(document, json_path, html_path)
