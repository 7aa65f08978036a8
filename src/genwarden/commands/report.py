"""``genwarden report``: everything a person reads is a function of ``audit.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.shown import reason
from genwarden.auditing.document import SCHEMA_VERSION, AuditDocument
from genwarden.engine.files import json_bytes, sha256_bytes
from genwarden.errors import GenwardenError
from genwarden.reports.html import render_html
from genwarden.reports.ml_bom import ml_bom
from genwarden.reports.sarif import sarif

#: What an audit can be written as.
FORMATS: Final = ("html", "sarif", "cyclonedx")
#: Of an ``audit.json`` with its pictures; ours have half a megabyte.
_MAX_BYTES: Final = 64 << 20
_MAX_VALUES: Final = 4_000_000


class ReadAudit(NamedTuple):
    """A validated document and the hash of the file that it stood in."""

    document: AuditDocument
    sha256: str


def read_document(path: Path) -> AuditDocument:
    """As :func:`read_audit`, without the hash."""
    return read_audit(path).document


def read_audit(path: Path) -> ReadAudit:
    """Read and validate an ``audit.json``.

    Raises:
        GenwardenError: ``report/not-found``, ``report/invalid``, or ``artifact/...`` for what is
            no plain file of modest size.
    """
    if (path / "audit.json").is_file():  # the folder that an audit wrote
        path = path / "audit.json"
    try:
        content = read_once(path, limit_bytes=_MAX_BYTES)
        load_json(content, most_bytes=_MAX_BYTES, most_values=_MAX_VALUES)
        return ReadAudit(AuditDocument.model_validate_json(content), sha256_bytes(content))
    except GenwardenError as error:
        if error.code not in {"artifact/not-found", "artifact/unreadable"}:
            raise
        raise GenwardenError("report/not-found", error.cause, error.remedy) from error
    except ValueError as error:  # pydantic's is one, too
        if isinstance(error, ValidationError):
            problem = f"{error.error_count()} problems"
        else:
            problem = reason(error)
        raise GenwardenError(
            "report/invalid",
            f"{path} is not an audit document of schema {SCHEMA_VERSION} ({problem}).",
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


def rendered(audit: ReadAudit, name: str, *, audit_name: str) -> bytes:
    """The audit in another format.

    Args:
        name: one of :data:`FORMATS`.
        audit_name: name of the file that was read.

    Raises:
        GenwardenError: ``report/format``.
    """
    if name == "html":
        return render_html(audit.document).encode()
    if name == "sarif":
        return json_bytes(sarif(audit.document))
    if name == "cyclonedx":
        return json_bytes(ml_bom(audit.document, audit_name=audit_name, audit_sha256=audit.sha256))
    raise GenwardenError(
        "report/format", f"There is no format {name!r}.", f"Choose one of: {', '.join(FORMATS)}."
    )
