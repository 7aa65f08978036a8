"""The JSON schema of ``audit.json``, published with the package.

Write it anew after a change of the document's types::

    python -m genwarden.reports.schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genwarden.auditing.document import SCHEMA_VERSION, AuditDocument
from genwarden.engine.files import write_atomic

#: Where the package keeps the schema of the current version.
SCHEMA_PATH = Path(__file__).parents[1] / "schemas" / f"audit-{SCHEMA_VERSION}.json"


def audit_schema() -> dict[str, Any]:
    """The schema of a document as genwarden writes it (JSON Schema 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:genwarden:audit:{SCHEMA_VERSION}",
        **AuditDocument.model_json_schema(mode="serialization"),
    }


def schema_text() -> str:
    """The schema file's content."""
    return json.dumps(audit_schema(), indent=2, ensure_ascii=False) + "\n"


def write_schema(path: Path = SCHEMA_PATH) -> Path:
    """Write the schema, atomically; returns where."""
    write_atomic(path, schema_text().encode())
    return path


if __name__ == "__main__":
    write_schema()
