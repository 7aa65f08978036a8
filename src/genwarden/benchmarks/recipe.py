"""A recipe is a list of cells, how their figures become tables, and how pictures are drawn.

Every cell is done, written (``OUT/cells/<key>.json``) and skipped when the command is repeated.
Clean models come first; then independent cells run side by side with ``--workers``.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.audit import environment
from genwarden.benchmarks.cells import Cell, select
from genwarden.benchmarks.measure import Subject, measure
from genwarden.benchmarks.results import (
    CELLS,
    RESULT,
    Results,
    find_results,
    read_document,
)
from genwarden.benchmarks.scales import Scale, scale_named
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.benchmarks.workshop import Workshop, attack_seconds
from genwarden.engine.files import require_writable_folder, write_atomic, write_json, write_tensors
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress, Silent
from genwarden.errors import GenwardenError

PICTURES = "pictures"
UNITS = "sums of squares over one sample in [-1, 1]; *_mean per element"
_CLEAN = "clean."


class Drawer(Protocol):
    """Draws the pictures of a recipe: file name to PNG."""

    def __call__(self, results: Results, pictures: Path) -> dict[str, bytes]:
        """``pictures`` holds the tensors that the measurements left."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Rebuilds one table or figure.

    Attributes:
        name: what the user types.
        module: where it is defined; its docstring explains it.
        cells: the cells at a scale.
        tables: ours beside the paper's.
        draw: pictures, if the recipe has any.
    """

    name: str
    module: str
    cells: Callable[[Scale], list[Cell]]
    tables: Callable[[Results], list[Table]]
    draw: Drawer | None = None

    def __post_init__(self) -> None:
        # ``genwarden explain`` looks these up on what a registry row names.
        object.__setattr__(self, "__module__", self.module)
        object.__setattr__(self, "__doc__", sys.modules[self.module].__doc__)

    def __call__(self, order: Order, progress: Progress) -> Path:
        """Run it: see :func:`run_recipe`."""
        return run_recipe(self, order, progress)


@dataclass(frozen=True)
class Order:
    """What the user asks of a recipe.

    Attributes:
        cells: shell patterns of cell keys, joined by commas; None for all.
        cache: folder of models, shared by recipes; ``out`` if None.
        workers: processes; with more than one, each computes with one thread.
        restart: throw the chosen cells away first (models stay).
        publish: folder that gets the result file and the pictures as ``<recipe>-<scale>``.
        options: see :meth:`Scale.changed`; ``clean.MODEL`` names a clean model folder.
    """

    out: Path
    data: Path | None = None
    scale: str = "small"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cells: str | None = None
    cache: Path | None = None
    workers: int = 1
    restart: bool = False
    publish: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def command(self, recipe: str, cells: str | None) -> str:
        """The command that repeats this, without the names of this machine's folders."""
        words = [f"genwarden benchmark run {recipe} --scale {self.scale}"]
        words += [f"--cells {cells}"] if cells else []
        for key, value in self.options.items():
            shown = Path(str(value)).name if key.startswith(_CLEAN) else value
            words.append(f"--option {key}={shown}")
        words += [f"--seed {self.seed}"] if self.seed else []
        return " ".join([*words, *(["--data DATA"] if self.data else []), "--out DIR"])


def run_recipe(recipe: Recipe, order: Order, progress: Progress) -> Path:
    """Do the chosen cells that are not done, then write ``OUT/result.json`` and the pictures.

    Raises:
        GenwardenError: ``benchmark/...``; ``benchmark/cells-failed`` after all others are done.
    """
    require_writable_folder(order.out)
    if order.workers < 1:
        raise GenwardenError(
            "benchmark/workers", "At least one worker is needed.", "Give --workers 1 or more."
        )
    models = {k: v for k, v in order.options.items() if k.startswith(_CLEAN)}
    rest = {k: v for k, v in order.options.items() if k not in models}
    scale = scale_named(order.scale).changed(rest)
    given = {key.removeprefix(_CLEAN): Path(str(value)) for key, value in models.items()}
    for name in given:
        scale.plan(name)
    everything = recipe.cells(scale)
    chosen = select(everything, order.cells)
    shop = Workshop(
        scale=scale,
        seed=order.seed,
        out=order.out,
        cache=order.cache or order.out,
        data=order.data,
        device=order.device,
        given=given,
    )
    if order.restart:
        for cell in chosen:
            _forget(cell, order.out)
    needed = list(dict.fromkeys(each for cell in chosen for each in shop.needed_clean(cell)))
    jobs: list[_Job] = [_Job(recipe.name, shop, order, clean=each) for each in needed]
    failed = _work(jobs, order.workers, progress)
    lost = {job.clean for job in failed}
    jobs = [
        _Job(recipe.name, shop, order, cell=cell)
        for cell in chosen
        if not lost.intersection(shop.needed_clean(cell))
    ]
    failed.update(_work(jobs, order.workers, progress))
    wrong_order = [e for e in failed.values() if e.code.startswith("benchmark/")]
    if wrong_order:
        raise wrong_order[0]
    if failed and not any((order.out / CELLS / f"{cell.key}.json").exists() for cell in chosen):
        raise next(iter(failed.values()))
    path = finish(recipe, order, everything)
    if failed:
        first = next(iter(failed.values()))
        names = ", ".join(job.name for job in failed)
        raise GenwardenError(
            "benchmark/cells-failed",
            f"{len(failed)} pieces of work failed ({names}); the first: {first.cause}",
            f"{first.remedy} The others are done; the same command tries these again.",
        )
    return path


def finish(recipe: Recipe, order: Order, everything: Sequence[Cell]) -> Path:
    """Collect the finished cells of a run into one result file, and draw its pictures."""
    keys = [cell.key for cell in everything]
    (found,) = find_results(recipe.name, order.out)
    found = found.in_order(keys)
    done = {row["key"] for row in found.rows}
    pictures = recipe.draw(found, order.out / PICTURES) if recipe.draw else {}
    for name, content in pictures.items():
        write_atomic(order.out / name, content)
    document = {
        "recipe": recipe.name,
        "command": order.command(recipe.name, None),
        "scale": found.scale,
        "seed": order.seed,
        "units": UNITS,
        "seconds": round(found.seconds(), 1),
        "missing": [key for key in keys if key not in done],
        "pictures": sorted(pictures),
        "cells": list(found.rows),
    }
    if order.publish is not None:
        stem = f"{recipe.name}-{order.scale}"
        named = {name: f"{stem}-{name}" for name in pictures}
        for name, content in pictures.items():
            write_atomic(order.publish / named[name], content)
        published = {**document, "pictures": sorted(named.values())}
        write_result(order.publish / f"{stem}.json", published)
    return write_result(order.out / RESULT, document)


def do_cell(cell: Cell, recipe: str, shop: Workshop, order: Order) -> None:
    """Attack and measure one cell, unless its file is there.

    Raises:
        GenwardenError: ``benchmark/other-run`` if the file was made with other settings.
    """
    clean = shop.clean(cell.model, cell.repeat if cell.benign else 0)
    settings = {} if cell.benign else asdict(shop.attack_settings(cell))
    identity = {
        **shop.identity,
        "cell": cell.describe(),
        "settings": settings,
        "clean_sha256": clean.sha256,
    }
    path = order.out / CELLS / f"{cell.key}.json"
    if path.exists():
        _require_same(path, identity, order.out, cell)
        return
    folder = None if cell.benign else shop.attacked_folder(cell)
    suspect = clean if folder is None else read_model(folder)
    subject = Subject(cell, shop, clean, suspect, folder)
    ledger = Ledger(order.out / "work" / cell.key, identity)
    figures: dict[str, Any] = {}
    seconds = {} if folder is None else {"attack": attack_seconds(folder)}
    for name in cell.measure:
        record = ledger.get(name)
        if record is None:
            began = time.monotonic()
            record = {"figures": measure(name, subject), "seconds": time.monotonic() - began}
            if name in subject.tensors:
                tensors = {"x": subject.tensors[name]}
                write_tensors(order.out / PICTURES / f"{cell.key}.safetensors", tensors)
            ledger.put(name, record)
        figures.update(record["figures"])
        seconds[name] = round(record["seconds"], 2)
    write_json(
        path,
        {
            "recipe": recipe,
            "key": cell.key,
            "command": order.command(recipe, cell.key),
            **identity,
            "run_id": ledger.run_id,
            "architecture": clean.architecture,
            "architecture_settings": clean.settings,
            "clean_model": clean.provenance,
            "sha256": suspect.sha256,
            "steps": suspect.provenance.get("last", {}).get("step"),
            "units": UNITS,
            "figures": figures,
            "seconds": seconds,
            "environment": environment(shop.device),
        },
    )
    ledger.discard()
    shutil.rmtree(order.out / "work" / f"{cell.key}.audit", ignore_errors=True)
    with suppress(OSError):  # other cells are still at work
        (order.out / "work").rmdir()


@dataclass(frozen=True)
class _Job:
    """One clean model or one cell."""

    recipe: str
    shop: Workshop
    order: Order
    clean: tuple[str, int] | None = None
    cell: Cell | None = None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def name(self) -> str:
        return self.cell.key if self.cell else "clean {} {}".format(*self.clean or ("", 0))

    def do(self, progress: Progress) -> None:
        shop = replace(self.shop, progress=progress)
        if self.cell is not None:
            do_cell(self.cell, self.recipe, shop, self.order)
        elif self.clean is not None:
            shop.clean_folder(*self.clean)


def _work(jobs: Sequence[_Job], workers: int, progress: Progress) -> dict[_Job, GenwardenError]:
    """Do all jobs; returns those that failed."""
    failed: dict[_Job, GenwardenError] = {}
    bar = progress.task("cells" if jobs and jobs[0].cell else "clean models", len(jobs))
    for job, error in _done(jobs, workers, progress):
        if error is not None:
            failed[job] = error
            progress.message(f"{job.name} failed: {error.cause}")
        bar.advance(1, job.name)
    return failed


def _done(
    jobs: Iterable[_Job], workers: int, progress: Progress
) -> Iterator[tuple[_Job, GenwardenError | None]]:
    if workers == 1:
        for job in jobs:
            yield job, _attempt(job, progress)
        return
    with _pool(workers) as pool:
        running = {pool.submit(_remote, job): job for job in jobs}
        for future in as_completed(running):
            told = future.result()
            yield running[future], GenwardenError(*told) if told else None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Forked children would inherit torch's locks and CUDA state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _attempt(job: _Job, progress: Progress) -> GenwardenError | None:
    try:
        job.do(progress)
    except GenwardenError as error:
        return error
    return None


def _remote(job: _Job) -> tuple[str, str, str] | None:
    """In a worker process: an error travels as its three texts."""
    error = _attempt(job, Silent())
    return (error.code, error.cause, error.remedy) if error else None


def _require_same(path: Path, identity: dict[str, Any], out: Path, cell: Cell) -> None:
    row, wanted = read_document(path), json.loads(json.dumps(identity))
    other = [key for key, value in wanted.items() if row.get(key) != value]
    if other:
        raise GenwardenError(
            "benchmark/other-run",
            f"{out} holds the cell {cell.key} of a run with other settings ({', '.join(other)} "
            "differ).",
            "Choose another --out folder, or add --restart (with --cells) to do it anew.",
        )


def _forget(cell: Cell, out: Path) -> None:
    (out / CELLS / f"{cell.key}.json").unlink(missing_ok=True)
    (out / PICTURES / f"{cell.key}.safetensors").unlink(missing_ok=True)
    for folder in (out / "work" / cell.key, out / "work" / f"{cell.key}.audit"):
        shutil.rmtree(folder, ignore_errors=True)
