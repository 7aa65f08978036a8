"""One JSON object from bytes that somebody else wrote."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from genwarden.artifacts.shown import reason, shown
from genwarden.errors import GenwardenError


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The object; a key that occurs twice is refused. Infinity and NaN parse as floats.

    Raises:
        GenwardenError: ``artifact/bad-json``.
    """
    try:
        document = json.loads(content, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"is not valid JSON ({reason(error)})") from error
    if not isinstance(document, dict):
        raise _bad(where, "is not a JSON object")
    return document


def first_problem(error: ValidationError) -> str:
    """The first field that a pydantic model refused, and why, on one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"{shown(field)}: {shown(first['msg'], limit=160)}"


def _bad(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/bad-json",
        f"{where} {problem}.",
        "Fetch the folder again; the file is damaged or was edited by hand.",
    )


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object, refused with ``ValueError`` if a key occurs twice."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document
