"""Cells of the recipes for compression: one JSON file each, done once, by any process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.benchmarks.cell_files import (
    CellFile,
    finished_rows,
    require_workers,
    scaled_command,
)
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.compression.workshop import Trial, Workshop
from genwarden.benchmarks.repairs.jobs import do_all
from genwarden.benchmarks.repairs.run import raise_failures, result_head
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress


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
class _CellJob(CellFile):
    recipe: str
    shop: Workshop
    cell: Cell
    out: Path

    @property
    def name(self) -> str:
        return self.cell.key

    @property
    def device(self) -> torch.device:
        return self.shop.device

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

    def measured(self) -> dict[str, Any]:
        """See the base."""
        return {"figures": self.cell.measure(self.shop, self.cell)}


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
    require_workers(orders.workers)
    chosen = matching(cells, orders.only, f"cell of {orders.recipe}")
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


def _collect(orders: Orders, cells: Sequence[Cell], failed: dict[str, str]) -> Path:
    """All finished cells of this scale and seed, whichever commands did them."""
    shop = orders.shop
    found = finished_rows(_CellJob(orders.recipe, shop, cell, orders.out) for cell in cells)
    done = {row["key"] for row in found}
    scale = shop.scale
    document = {
        **result_head(orders.recipe, shop.seed, shop.device),
        "command": scaled_command(
            orders.recipe, scale.name, shop.seed, orders.data, orders.options
        ),
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
