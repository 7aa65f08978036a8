"""Names and messages that come from a file, made fit for a sentence to a person."""

from __future__ import annotations

_LIMIT_CHARACTERS = 80


def shown(value: object, *, limit: int = _LIMIT_CHARACTERS) -> str:
    """One short printable line; control characters, line breaks and lone surrogates are escaped.

    A tensor may be called ``"\\x1b[2J"`` or be a megabyte long; an error message must neither clear
    the reader's screen nor bury its own sentence.
    """
    text = str(value)
    surplus = len(text) > limit
    text = text[: limit - 3] if surplus else text
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{line}..." if surplus else line


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, limit=160)
