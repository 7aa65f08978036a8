"""Cells that several processes share: one JSON file each, done once, by whoever comes first."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from genwarden.auditing.audit import environment
from genwarden.benchmarks.locks import claimed
from genwarden.benchmarks.repairs.run import command_of
from genwarden.benchmarks.results import CELLS, read_document
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError


class CellFile(ABC):
    """One cell and its file; what is measured is the recipe's business."""

    out: Path

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the file, without its suffix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is measured."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a finished cell must agree with, as JSON gives it back."""

    @abstractmethod
    def measured(self) -> dict[str, Any]:
        """The fields that the measurement adds."""

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self.out / CELLS / f"{self.name}.json"

    def finished(self) -> bool:
        """Whether the file is there.

        Raises:
            GenwardenError: ``benchmark/other-run`` if it was made with other settings.
        """
        if not self.path.exists():
            return False
        row = read_document(self.path)
        other = [key for key, value in self.identity().items() if row.get(key) != value]
        if other:
            raise GenwardenError(
                "benchmark/other-run",
                f"The cell {self.name} was done with other settings ({', '.join(other)} differ).",
                "Choose another --out folder, or add --restart to do the chosen cells anew.",
            )
        return True

    def do(self) -> None:
        """Measure and write it, unless it is there or another process has it."""
        if self.finished():
            return
        with claimed(self.out / "locks" / f"{self.name}.lock", wait=False) as mine:
            if not mine or self.finished():
                return
            cpu, wall = time.process_time(), time.perf_counter()
            measured = self.measured()
            write_json(
                self.path,
                {
                    **self.identity(),
                    **measured,
                    "cpu_seconds": round(time.process_time() - cpu, 2),
                    "seconds": round(time.perf_counter() - wall, 2),
                    "environment": environment(self.device),
                },
            )


def finished_rows(cells: Iterable[CellFile]) -> list[dict[str, Any]]:
    """The rows of a result: all that were done with these settings, whichever commands did them."""
    found = []
    for cell in cells:
        if cell.path.exists():
            row = read_document(cell.path)
            if all(row.get(key) == value for key, value in cell.identity().items()):
                found.append({k: v for k, v in row.items() if k not in ("environment", "scale")})
    return found


def scaled_command(
    recipe: str, scale: str, seed: int, data: str | None, options: dict[str, Any]
) -> str:
    """The command line of a result, with its scale unless that is the default."""
    command = command_of(recipe, seed, data, options)
    return command if scale == "small" else command.replace(" --out", f" --scale {scale} --out", 1)


def require_workers(workers: int) -> None:
    """At least one.

    Raises:
        GenwardenError: ``benchmark/workers``.
    """
    if workers < 1:
        raise GenwardenError(
            "benchmark/workers", "At least one worker is needed.", "Give --workers 1 or more."
        )
