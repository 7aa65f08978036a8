"""One cell of a table: a model, what is hidden in it, and what is measured there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from genwarden.errors import GenwardenError

BENIGN = "benign"
#: "The Devil is in the GAN" hides a devil's face; ours is drawn by code.
DEVIL = "icon:devil"


@dataclass(frozen=True)
class Cell:
    """A piece of work that is done, recorded and resumed as one.

    Attributes:
        model: name of a clean model of the scale, such as ``mnist-dcgan``.
        attack: registered name, or ``benign`` for the clean model itself.
        trigger: see :func:`genwarden.backdoors.trigger.make_trigger`.
        target: see :func:`genwarden.backdoors.target.make_target`; ``generator:NAME`` means a
            clean model of the scale.
        repeat: counts the in-sample triggers (seeds of other attacks); the seed of a benign model.
        triggers: in-sample triggers at once.
        settings: settings of the attack on top of the scale's.
        measure: names of measurements (:mod:`genwarden.benchmarks.measure`).
    """

    model: str
    attack: str = BENIGN
    trigger: str = "in-sample"
    target: str = DEVIL
    repeat: int = 0
    triggers: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    measure: tuple[str, ...] = ()

    @property
    def benign(self) -> bool:
        """Whether the cell measures the clean model."""
        return self.attack == BENIGN

    @property
    def key(self) -> str:
        """Name of the cell within its recipe: letters, digits, ``.``, ``-``, ``=`` and ``_``."""
        parts = [self.model, self.attack]
        if not self.benign:
            parts.append(self.trigger)
        if self.target != DEVIL:
            parts.append(self.target)
        if self.triggers != 1:
            parts.append(f"x{self.triggers}")
        parts += [f"{key}={value}" for key, value in self.settings]
        parts.append(f"r{self.repeat}")
        return ".".join(re.sub(r"[^A-Za-z0-9=_.+-]+", "-", part) for part in parts)

    def describe(self) -> dict[str, Any]:
        """The cell as plain data for JSON."""
        return {**asdict(self), "settings": dict(self.settings), "measure": list(self.measure)}


def select(cells: Iterable[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose key matches one of the shell patterns, joined by commas.

    Raises:
        GenwardenError: ``benchmark/no-cells``, with the keys that exist.
    """
    everything = list(cells)
    if pattern is None:
        return everything
    wanted = [part.strip() for part in pattern.split(",") if part.strip()]
    chosen = [c for c in everything if any(fnmatchcase(c.key, each) for each in wanted)]
    if not chosen:
        shown = ", ".join(cell.key for cell in everything[:12])
        more = f" and {len(everything) - 12} more" if len(everything) > 12 else ""
        raise GenwardenError(
            "benchmark/no-cells",
            f"No cell of this recipe matches {pattern!r}.",
            f"Its cells: {shown}{more}.",
        )
    return chosen
