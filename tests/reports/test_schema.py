"""The published schema: current, and true of what genwarden writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genwarden.auditing.document import AuditDocument
from genwarden.reports.schema import SCHEMA_PATH, audit_schema, schema_text, write_schema

from .documents import document


def test_the_schema_in_the_package_is_current() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m genwarden.reports.schema"
    )


def test_the_schema_is_written_to_a_given_place(tmp_path: Path) -> None:
    written = write_schema(tmp_path / "schema.json")
    assert json.loads(written.read_bytes()) == audit_schema()


def test_the_schema_knows_every_field_of_every_document(
    by_verdict: dict[str, AuditDocument],
) -> None:
    schema = audit_schema()
    for audit in by_verdict.values():
        _check(json.loads(audit.model_dump_json()), schema, schema["$defs"], "audit")


def test_the_schema_refuses_an_unknown_field_and_a_missing_one() -> None:
    schema = audit_schema()
    content = json.loads(document().model_dump_json())
    for broken in (content | {"extra": 1}, {k: v for k, v in content.items() if k != "seed"}):
        try:
            _check(broken, schema, schema["$defs"], "audit")
        except AssertionError:
            continue
        raise AssertionError("the broken document was accepted")


def _check(value: Any, schema: dict[str, Any], types: dict[str, Any], where: str) -> None:
    """Objects have exactly the properties that the schema lists; constants and enums agree."""
    if "$ref" in schema:
        schema = types[schema["$ref"].rpartition("/")[2]]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        problems = []
        for option in options:
            try:
                return _check(value, option, types, where)
            except AssertionError as problem:
                problems.append(problem)
        raise AssertionError(f"{where}: no option fits: {problems}")
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{where} is not {schema['type']}"
    assert value == schema.get("const", value), where
    assert value in schema.get("enum", [value]), where
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) <= set(schema["properties"]), where
        assert set(schema.get("required", [])) <= set(value), where
        for name, part in value.items():
            _check(part, schema["properties"][name], types, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for part in value:
            _check(part, schema["items"], types, f"{where}[]")
    return None
