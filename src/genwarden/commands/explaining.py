"""What ``genwarden explain`` reads off the code: meanings of settings, and names like a typed one.

The meanings stand in the docstrings of the settings' classes, so that they are written once.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable

_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ ].*\n|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)
#: Names less like what was typed are no help.
_LEAST_LIKE = 0.5
_MOST_NAMES = 5


def meanings(kind: type) -> dict[str, str]:
    """By name, what the docstrings of a class and its bases say about a setting; its own win.

    Google's style: entries ``name: text`` or ``name (type): text`` under ``Attributes:`` or
    ``Args:``, continued on deeper indented lines; ``one, other: text`` is for both.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(base).get("__doc__") or "") + "\n"
        for section in _SECTION.finditer(text):
            for entry in _ENTRY.finditer(section[1]):
                for name in entry[1].split(", "):
                    found[name.lstrip("*")] = " ".join(entry[2].split())
    return found


def without_settings(text: str) -> str:
    """A docstring without the sections that :func:`meanings` reads."""
    return _SECTION.sub("", f"{text}\n").rstrip()


def closest(name: str, names: Iterable[str]) -> list[str]:
    """The few of ``names`` that are most like a typed one, likest first.

    >>> closest("differental-serch", ["strip", "differential-search", "rex"])
    ['differential-search']
    """
    known = {known.lower(): known for known in names}
    typed = name.lower()
    like = difflib.get_close_matches(typed, known, _MOST_NAMES, _LEAST_LIKE)
    holding = [one for one in known if len(typed) > 2 and typed in one and one not in like]
    return [known[one] for one in (like + holding)[:_MOST_NAMES]]
