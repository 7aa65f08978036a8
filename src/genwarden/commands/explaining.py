"""What ``genwarden explain`` reads off the code: meanings of settings.

They stand in the docstrings of the settings' classes, so that they are written once.
"""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ ].*\n|\n)*)", re.MULTILINE)
#: For programmers; an error names its code by itself.
_FOR_CALLERS = re.compile(r"^(?:Raises|Returns|Yields):\n((?:[ ].*\n|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


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


def without_errors(text: str) -> str:
    """A docstring without what it raises and returns."""
    return _FOR_CALLERS.sub("", f"{text}\n").rstrip()
