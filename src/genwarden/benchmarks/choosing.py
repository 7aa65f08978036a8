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


def matching(
    everything: Sequence[AnyKeyed], only: str, what: str = "member of the population"
) -> list[AnyKeyed]:
    """Those whose key matches one of the shell patterns, joined by commas.

    Args:
        what: one of them, for the message.

    Raises:
        GenwardenError: ``benchmark/no-cells``.
    """
    patterns = [part.strip() for part in only.split(",")]
    chosen = [one for one in everything if any(fnmatchcase(one.key, p) for p in patterns)]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"No {what} matches {only!r}.",
            f"Their names look like {everything[0].key} and {everything[-1].key}.",
        )
    return chosen
