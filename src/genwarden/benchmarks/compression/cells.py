"""Cells of the recipes for compression: one JSON file each, done once, by any process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from genwarden import __version__
from genwarden.auditing.audit import environment
from genwarden.benchmarks.compression.workshop import Trial, Workshop
from genwarden.benchmarks.diffusion.locks import claimed
from genwarden.benchmarks.repairs.jobs import do_all
from genwarden.benchmarks.repairs.run import command_of, raise_failures, result_head
from genwarden.benchmarks.results import CELLS, read_document
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import require_writable_folder, write_json
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class Cell:
    """One measurement of one attacked model.

    Attributes:
        key: name of its file.
        fields: what is measured, as plain data.
        measure: a function of a module: workshop and cell to figures.
    """

    key: str
    trial: Trial
    fields: tuple[tuple[str, Any], ...]
    measure: Callable[[Workshop, Cell], dict[str, Any]]

    def get(self, name: str) -> Any:
        """One of the fields."""
        return dict(self.fields)[name]


@dataclass(frozen=True)
class _ModelJob:
    shop: Workshop
    trial: Trial

    @property
    def name(self) -> str:
        return self.trial.key

    def do(self) -> None:
        self.shop.attacked(self.trial)


@dataclass(frozen=True)
class _CellJob:
    recipe: str
    shop: Workshop
    cell: Cell
    out: Path

    @property
    def name(self) -> str:
        return self.cell.key

    @property
    def path(self) -> Path:
        return self.out / CELLS / f"{self.cell.key}.json"

    def identity(self) -> dict[str, Any]:
        """What a finished cell must agree with."""
        cell, shop = self.cell, self.shop
        made: dict[str, Any] = {
            "recipe": self.recipe,
            "key": cell.key,
            "version": __version__,
            "seed": shop.seed,
            "scale": shop.scale.describe(),
            **cell.trial.describe(),
            "settings": cell.trial.given(shop.seed),
            "cell": dict(cell.fields),
        }
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain

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
        if self.finished():
            return
        with claimed(self.out / "locks" / f"{self.cell.key}.lock", wait=False) as mine:
            if not mine or self.finished():
                return
            cpu, wall = time.process_time(), time.perf_counter()
            figures = self.cell.measure(self.shop, self.cell)
            write_json(
                self.path,
                {
                    **self.identity(),
                    "figures": figures,
                    "cpu_seconds": round(time.process_time() - cpu, 2),
                    "seconds": round(time.perf_counter() - wall, 2),
                    "environment": environment(self.shop.device),
                },
            )


@dataclass(frozen=True)
class Orders:
    """What the user asks of one of these recipes."""

    recipe: str
    out: Path
    shop: Workshop
    data: str | None
    options: dict[str, Any]
    only: str
    workers: int
    restart: bool


def run_cells(orders: Orders, cells: Sequence[Cell], progress: Progress) -> Path:
    """Make the models, do the chosen cells that nobody else does, write ``OUT/result.json``.

    Raises:
        GenwardenError: ``benchmark/workers``, ``benchmark/no-cells``, ``benchmark/data-missing``,
            ``output/...``; ``benchmark/cells-failed`` after all else is done and written.
    """
    require_writable_folder(orders.out)
    if orders.workers < 1:
        raise GenwardenError(
            "benchmark/workers", "At least one worker is needed.", "Give --workers 1 or more."
        )
    chosen = _chosen(orders, cells)
    orders.shop.require_data()
    jobs = [_CellJob(orders.recipe, orders.shop, cell, orders.out) for cell in chosen]
    if orders.restart:
        for job in jobs:
            job.path.unlink(missing_ok=True)
    open_jobs = [job for job in jobs if not job.finished()]
    trials = list({job.cell.trial.key: job.cell.trial for job in open_jobs}.values())
    made = [_ModelJob(orders.shop, trial) for trial in trials]
    failed = {j.name: f for j, f in do_all(made, orders.workers, progress, "models")}
    possible = [job for job in open_jobs if job.cell.trial.key not in failed]
    failed |= {j.name: f for j, f in do_all(possible, orders.workers, progress, "cells")}
    path = _collect(orders, cells, {n: f"{f.code}: {f.cause}" for n, f in failed.items()})
    raise_failures(failed)
    return path


def _chosen(orders: Orders, cells: Sequence[Cell]) -> list[Cell]:
    patterns = [part.strip() for part in orders.only.split(",")]
    chosen = [c for c in cells if any(fnmatchcase(c.key, pattern) for pattern in patterns)]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"No cell of {orders.recipe} matches {orders.only!r}.",
            f"Their names look like {cells[0].key} and {cells[-1].key}.",
        )
    return chosen


def _collect(orders: Orders, cells: Sequence[Cell], failed: dict[str, str]) -> Path:
    """All finished cells of this scale and seed, whichever commands did them."""
    shop, found = orders.shop, []
    for cell in cells:
        job = _CellJob(orders.recipe, shop, cell, orders.out)
        if job.path.exists():
            row = read_document(job.path)
            if all(row.get(key) == value for key, value in job.identity().items()):
                found.append({k: v for k, v in row.items() if k not in ("environment", "scale")})
    done = {row["key"] for row in found}
    scale = shop.scale
    command = command_of(orders.recipe, shop.seed, orders.data, orders.options)
    if scale.name != "small":
        command = command.replace(" --out", f" --scale {scale.name} --out", 1)
    document = {
        **result_head(orders.recipe, shop.seed, shop.device),
        "command": command,
        "scale": scale.describe(),
        "paper_accuracy": {
            s.name: s.paper_accuracy for s in scale.subjects if s.paper_accuracy is not None
        },
        "rows": found,
        "missing": [cell.key for cell in cells if cell.key not in done],
        "failed": failed,
        "pictures": [],
    }
    return write_result(orders.out / "result.json", document)
