"""What a row of the registry is, and the tables made of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from genwarden.errors import GenwardenError

#: Names less like what was typed are no help.
_LEAST_LIKE = 0.5
_MOST_NAMES = 5


@dataclass(frozen=True)
class Row:
    """One registered method.

    Attributes:
        name: what the user types.
        location: ``package.module:attribute``, imported only when used.
        summary: one line for ``list``.
        options: plain data about the row (never code).
    """

    name: str
    location: str
    summary: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the method. The location comes from this file, never from a model."""
        return _import(self.location)

    def load_option(self, key: str) -> Any:
        """Import what the option ``key`` names, likewise ``package.module:attribute``."""
        return _import(self.options[key])


def _import(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)


def table_of(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


def find(table: dict[str, Row], name: str, what: str) -> Row:
    """The row of a name.

    Raises:
        GenwardenError: ``usage/unknown-name``, with the names that exist.
    """
    if name not in table:
        like = closest(name, table)
        meant = f" Did you mean {' or '.join(like)}?" if like else ""
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no {what} called {name!r}.{meant}",
            f"Choose one of: {', '.join(table)}.",
        )
    return table[name]


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
