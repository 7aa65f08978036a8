"""``genwarden report``: everything a person reads is a function of ``audit.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from genwarden.auditing.document import SCHEMA_VERSION, AuditDocument
from genwarden.engine.files import write_atomic
from genwarden.errors import GenwardenError
from genwarden.reports.html import render_html


def read_document(path: Path) -> AuditDocument:
    """Read and validate an ``audit.json``.

    Raises:
        GenwardenError: ``report/not-found``, ``report/invalid``.
    """
    try:
        return AuditDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GenwardenError(
            "report/not-found", f"{path} cannot be read ({error.strerror}).", "Check the path."
        ) from error
    except ValidationError as error:
        raise GenwardenError(
            "report/invalid",
            f"{path} is not an audit document of schema {SCHEMA_VERSION} "
            f"({error.error_count()} problems).",
            "Give the audit.json that `genwarden audit` wrote.",
        ) from error


def read_audit_of(path: Path, sha256: str, given: str) -> AuditDocument:
    """An ``audit.json`` that must be of one model.

    Args:
        sha256: of the model; ``given`` is what the user gave, with its verb.

    Raises:
        GenwardenError: ``sample/other-model``, and those of :func:`read_document`.
    """
    document = read_document(path)
    if document.model is None or document.model.sha256 != sha256:
        audited = document.model.sha256[:12] if document.model else "no model"
        raise GenwardenError(
            "sample/other-model",
            f"{path} audited {audited}, the {given} {sha256[:12]}.",
            "Name the model that was audited, or audit this one.",
        )
    return document


def write_html(document: AuditDocument, path: Path) -> None:
    """Write the HTML report of a document."""
    write_atomic(path, render_html(document).encode())
