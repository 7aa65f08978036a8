"""JSON from bytes that somebody else wrote: one meaning or none.

Python's parser takes UTF-16, keys that occur twice, ``NaN``, numbers of 4,300 digits and lone
surrogates. Other parsers take them otherwise or not at all, and a document that two readers read
differently is a way past one of them (C-5).
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from genwarden.artifacts.limits import (
    MAX_DIGITS,
    MAX_DOCUMENT_BYTES,
    MAX_DOCUMENT_DEPTH,
    MAX_DOCUMENT_VALUES,
)
from genwarden.artifacts.shown import reason, shown
from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Of records of our own attacks, which may hold the course of a long training.
_MAX_OBJECT_BYTES: Final = 16 << 20
_MAX_OBJECT_VALUES: Final = 1_000_000
#: A text, or one that never ends: without the second case the search would begin again at every
#: quote of such a text.
_TEXT: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS: Final = re.compile(r"[\[\]{}]")


def load_json(
    content: bytes | bytearray | memoryview,
    *,
    constants: bool = False,
    most_bytes: int = MAX_DOCUMENT_BYTES,
    most_values: int = MAX_DOCUMENT_VALUES,
    most_levels: int = MAX_DOCUMENT_DEPTH,
) -> Any:
    """The value of a JSON document in UTF-8.

    Args:
        constants: take ``NaN`` and ``Infinity``, which diffusers writes and JSON does not have,
            and numbers beyond float64 as infinite; for whoever judges values one by one.
        most_values: values and keys.
        most_levels: nested objects and lists.

    Raises:
        ValueError: what is wrong with it, for people.
    """
    if len(content) > most_bytes:
        raise ValueError(f"it has {len(content):,} bytes")
    text = bytes(content).decode("utf-8")
    _require_modest(text, most_values, most_levels)
    try:
        document = json.loads(
            text,
            object_pairs_hook=no_duplicates,
            parse_constant=None if constants else _no_constants,
            parse_int=_integer,
            parse_float=float if constants else _real,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "\\u" in text:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text holds half a character") from error
    return document


def _require_modest(text: str, most_values: int, most_levels: int) -> None:
    """Bounds that hold before Python's parser builds anything."""
    bare = _TEXT.sub("", text)
    opened = bare.count("[") + bare.count("{")
    if bare.count(",") + opened > most_values:
        raise ValueError("it holds too many values")
    if opened <= most_levels:
        return
    depth = 0
    for bracket in _BRACKETS.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > most_levels:
            raise ValueError("it is nested too deeply")
        if depth < 0:
            raise ValueError("its brackets do not match")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS or text == "-0":  # which others read as a fraction
        raise ValueError(f"{shown(text, limit=20)} is not a number that everybody reads alike")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{shown(text, limit=20)} is not a number that everybody reads alike")
    return value


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The object; a key that occurs twice is refused. Infinity and NaN parse as floats.

    Raises:
        GenwardenError: ``artifact/bad-json``.
    """
    try:
        document = load_json(
            content, constants=True, most_bytes=_MAX_OBJECT_BYTES, most_values=_MAX_OBJECT_VALUES
        )
    except ValueError as error:
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
