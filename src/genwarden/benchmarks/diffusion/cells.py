"""Cells of the recipes for diffusion models: one JSON file each, done once, by any process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.benchmarks.cell_files import (
    CellFile,
    finished_rows,
    require_workers,
    scaled_command,
)
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.diffusion.scales import DiffusionScale, diffusion_scale
from genwarden.benchmarks.diffusion.workshop import CLEAN, Subject, Workshop
from genwarden.benchmarks.repairs.jobs import Failure, do_all
from genwarden.benchmarks.repairs.run import raise_failures, result_head
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import require_writable_folder, write_atomic
from genwarden.engine.progress import Progress


@dataclass(frozen=True)
class Cell:
    """One measurement of one model.

    Attributes:
        key: name of its file.
        subject: the model.
        fields: what is measured, as plain data.
        measure: a function of a module: workshop and cell to figures.
    """

    key: str
    subject: Subject
    fields: tuple[tuple[str, Any], ...]
    measure: Callable[[Workshop, Cell], dict[str, Any]]

    def get(self, name: str) -> Any:
        """One of the fields."""
        return dict(self.fields)[name]


@dataclass(frozen=True)
class _ModelJob:
    shop: Workshop
    subject: Subject
    wait: bool

    @property
    def name(self) -> str:
        return self.subject.key

    def do(self) -> None:
        self.shop.make(self.subject, wait=self.wait)


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
            "model": cell.subject.name,
            "attack": cell.subject.attack,
            "settings": dict(cell.subject.settings),
            "cell": dict(cell.fields),
        }
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain

    def measured(self) -> dict[str, Any]:
        """See the base."""
        figures = self.cell.measure(self.shop, self.cell)
        return {"sha256": self.shop.read(self.cell.subject).sha256, "figures": figures}


@dataclass(frozen=True)
class Orders:
    """What the user asks of one of these recipes; see :func:`run_cells`."""

    recipe: str
    out: Path
    shop: Workshop
    options: dict[str, Any]
    only: str = "*"
    workers: int = 1
    restart: bool = False


def recipe(
    name: str,
    cells: Callable[[DiffusionScale], list[Cell]],
    draw: Callable[[dict[str, Any]], dict[str, bytes]] | None = None,
) -> Callable[..., Path]:
    """The function that the command line calls for a recipe of cells.

    Args:
        name: of the recipe.
        cells: all its cells at a scale; ``explain`` shows the page of their module.
        draw: pictures by name, from the result's content.
    """

    def run(
        out: Path,
        *,
        data: str | None,
        seed: int,
        device: torch.device,
        progress: Progress,
        scale: str = "small",
        models: str = "",
        clean: str = "",
        only: str = "*",
        workers: int = 1,
        restart: bool = False,
    ) -> Path:
        """Train what is missing and do every cell that is not done yet.

        Args:
            data: folder with the data sets as sub-folders.
            models: folder of the models, which the recipes share; ``OUT/models`` if empty.
            clean: a clean diffusers folder to start from, in place of the scale's own.
            only: shell patterns of cell keys, joined by commas (``sde.*,*.quality``).
            workers: models, then cells, at a time; one thread each.
            restart: do the chosen cells anew; models are kept.

        Raises:
            GenwardenError: ``usage/unknown-name``, ``benchmark/workers``, ``output/...``,
                ``benchmark/data-missing``, ``benchmark/no-cells``; ``benchmark/cells-failed``
                after everything else is done and written.
        """
        require_writable_folder(out)
        require_workers(workers)
        shop = Workshop(
            scale=diffusion_scale(scale),
            data=Path(data) if data else None,
            models=Path(models) if models else out / "models",
            seed=seed,
            clean=clean,
            device=device,
        )
        options = {"models": models and "MODELS", "clean": clean and "CLEAN"}
        orders = Orders(name, out, shop, options, only, workers, restart)
        return run_cells(orders, cells(shop.scale), progress, draw)

    run.__module__ = cells.__module__
    return run


def run_cells(
    orders: Orders,
    cells: Sequence[Cell],
    progress: Progress,
    draw: Callable[[dict[str, Any]], dict[str, bytes]] | None = None,
) -> Path:
    """Make the models, do the chosen cells that nobody else does, write ``OUT/result.json``.

    Cells that another process is doing are left to it: the last one to end collects all.

    Args:
        draw: pictures by name, from the result's content.

    Raises:
        GenwardenError: ``benchmark/no-cells``; ``benchmark/cells-failed`` after all else is done.
    """
    chosen = matching(cells, orders.only, f"cell of {orders.recipe}")
    jobs = [_CellJob(orders.recipe, orders.shop, cell, orders.out) for cell in chosen]
    if orders.restart:
        for job in jobs:
            job.path.unlink(missing_ok=True)
    lost = _make_models(orders, chosen, progress)
    for job in jobs:
        if job.cell.subject.key in lost:
            progress.message(f"{job.name} is left out: its model failed")
    possible = [job for job in jobs if job.cell.subject.key not in lost]
    failed = {j.name: f for j, f in do_all(possible, orders.workers, progress, "cells")}
    path = _collect(orders, cells, failed, draw)
    raise_failures({**lost, **failed})
    return path


def _make_models(orders: Orders, chosen: Sequence[Cell], progress: Progress) -> dict[str, Failure]:
    """The base, then all others; what another process is making is waited for last."""
    shop = orders.shop
    folders = [shop.folder(subject) for subject in {CLEAN, *(c.subject for c in chosen)}]
    if not all((folder / INDEX_NAME).exists() for folder in folders):
        _ = shop.source  # refused now, before anything is trained
    needed = list({c.subject.key: c.subject for c in chosen if c.subject != CLEAN}.values())
    base = do_all([_ModelJob(shop, CLEAN, True)], 1, progress, "clean model")
    if base:
        raise_failures({job.name: failure for job, failure in base})
    first = [_ModelJob(shop, subject, False) for subject in needed]
    lost = {j.name: f for j, f in do_all(first, orders.workers, progress, "models")}
    rest = [_ModelJob(shop, subject, True) for subject in needed if subject.key not in lost]
    lost.update({j.name: f for j, f in do_all(rest, 1, progress, "models of other processes")})
    return lost


def _collect(
    orders: Orders,
    cells: Sequence[Cell],
    failed: dict[str, Failure],
    draw: Callable[[dict[str, Any]], dict[str, bytes]] | None,
) -> Path:
    shop = orders.shop
    found = finished_rows(_CellJob(orders.recipe, shop, cell, orders.out) for cell in cells)
    done = {row["key"] for row in found}
    document = {
        **result_head(orders.recipe, shop.seed, shop.device),
        "command": scaled_command(
            orders.recipe, shop.scale.name, shop.seed, str(shop.data or ""), orders.options
        ),
        "scale": shop.scale.describe(),
        "rows": found,
        "missing": [cell.key for cell in cells if cell.key not in done],
        "failed": {name: f"{f.code}: {f.cause}" for name, f in failed.items()},
    }
    pictures = draw(document) if draw and found else {}
    for name, content in pictures.items():
        write_atomic(orders.out / name, content)
    return write_result(orders.out / "result.json", {**document, "pictures": sorted(pictures)})
