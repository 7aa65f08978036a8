"""What a row of the registry is, and the tables made of them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from genwarden.errors import GenwardenError


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
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no {what} called {name!r}.",
            f"Choose one of: {', '.join(table)}.",
        )
    return table[name]
