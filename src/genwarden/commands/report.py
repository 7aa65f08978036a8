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


def write_html(document: AuditDocument, path: Path) -> None:
    """Write the HTML report of a document."""
    write_atomic(path, render_html(document).encode())
