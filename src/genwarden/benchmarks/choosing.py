"""Which cells of a recipe, or members of a population, a user names with ``only``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from genwarden.errors import GenwardenError


class Keyed(Protocol):
    """What has a name of its own."""

    @property
    def key(self) -> str:
        """Its name."""
        ...


AnyKeyed = TypeVar("AnyKeyed", bound=Keyed)


def is_chosen(name: str, only: str) -> bool:
    """Whether a name matches one of the shell patterns, joined by commas."""
    return any(fnmatchcase(name, part.strip()) for part in only.split(","))


def matching(
    everything: Sequence[AnyKeyed], only: str, what: str = "member of the population"
) -> list[AnyKeyed]:
    """Those whose key matches one of the shell patterns, joined by commas.

    Args:
        what: one of them, for the message.

    Raises:
        GenwardenError: ``benchmark/no-cells``.
    """
    chosen = [one for one in everything if is_chosen(one.key, only)]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"No {what} matches {only!r}.",
            f"Their names look like {everything[0].key} and {everything[-1].key}.",
        )
    return chosen
