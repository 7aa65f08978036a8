"""A recipe is a list of cells, how their figures become tables, and how pictures are drawn.

Every cell is done, written (``OUT/cells/<key>.json``) and skipped when the command is repeated.
Clean models come first; then independent cells run side by side with ``--workers``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from genwarden import __version__
from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.audit import environment
from genwarden.benchmarks.cells import Cell, select
from genwarden.benchmarks.measure import IN_FEATURES, Subject, measure
from genwarden.benchmarks.results import (
    CELLS,
    RESULT,
    Results,
    finished_cells,
    read_document,
)
from genwarden.benchmarks.scales import Scale, scale_named
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.benchmarks.workshop import Workshop, attack_seconds
from genwarden.engine.choice import executor_for
from genwarden.engine.executor import ErrorParts, Lost, Nothing, parts_of
from genwarden.engine.files import require_writable_folder, write_atomic, write_json, write_tensors
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.threads import threads
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import feature_sha256

PICTURES = "pictures"
UNITS = "sums of squares over one sample in [-1, 1]; *_mean per element"
_CLEAN = "clean."
_FEATURES = "features."


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
        workers: pieces of work at a time; each computes with one thread, so that their number
            changes nothing.
        restart: throw the chosen cells away first (models stay).
        publish: folder that gets the result file and the pictures as ``<recipe>-<scale>``.
        options: see :meth:`Scale.changed`; ``clean.MODEL`` names a clean model folder,
            ``features.MODEL`` a feature network (``inception``, a shipped one, or a folder).
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
            shown = Path(str(value)).name if key.startswith((_CLEAN, _FEATURES)) else value
            text = ",".join(map(str, shown)) if isinstance(shown, list) else shown
            words.append(f"--option {key}={text}")
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
    models = _prefixed(order.options, _CLEAN)
    networks = _prefixed(order.options, _FEATURES)
    rest = {k: v for k, v in order.options.items() if not k.startswith((_CLEAN, _FEATURES))}
    scale = scale_named(order.scale).changed(rest)
    given = {name: Path(value) for name, value in models.items()}
    for name in given:
        scale.plan(name)
    for name, network in networks.items():
        _require_features(scale, name, network)
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
        given_features=networks,
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
    path = finish(recipe, order, everything, progress)
    if failed:
        first = next(iter(failed.values()))
        names = ", ".join(job.name for job in failed)
        raise GenwardenError(
            "benchmark/cells-failed",
            f"{len(failed)} pieces of work failed ({names}); the first: {first.cause}",
            f"{first.remedy} The others are done; the same command tries these again.",
        )
    return path


def _prefixed(options: Mapping[str, Any], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): str(v) for k, v in options.items() if k.startswith(prefix)}


def _require_features(scale: Scale, model: str, network: str) -> None:
    """Refuse a feature network that is not there, before anything is trained."""
    if not scale.plan(model).features:
        raise GenwardenError(
            "benchmark/option",
            f"features.{model}: FID, KID and IS are not measured on {model}.",
            "Leave the option away.",
        )
    feature_sha256(network)


def finish(
    recipe: Recipe, order: Order, everything: Sequence[Cell], progress: Progress | None = None
) -> Path:
    """Collect the finished cells of a run into one result file, and draw its pictures.

    Cells of another scale, seed or version that lie in the same folder are left out.
    """
    keys = [cell.key for cell in everything]
    groups = finished_cells(recipe.name, order.out)
    mine = [g for g in groups if g.made_with == (order.scale, order.seed, __version__)]
    others = sum(len(group.rows) for group in groups if group not in mine)
    if others and progress is not None:
        progress.message(
            f"{others} finished cells of another scale, seed or version are left out of the result"
        )
    if not mine:
        raise GenwardenError(
            "benchmark/no-results",
            f"{order.out} holds no finished cells of scale {order.scale}, seed {order.seed}.",
            "Repeat the command.",
        )
    found = mine[0].in_order(keys)
    done = {row["key"] for row in found.rows}
    pictures = recipe.draw(found, order.out / PICTURES) if recipe.draw else {}
    for name, content in pictures.items():
        write_atomic(order.out / name, content)
    document = {
        "recipe": recipe.name,
        "command": _commands(found),
        "scale": found.scale,
        "seed": found.made_with[1],
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


def _commands(found: Results) -> str:
    """What repeats all cells: their own commands, without the choice of one cell."""
    commands = (re.sub(r" --cells \S+", "", row["command"]) for row in found.rows)
    return "; ".join(dict.fromkeys(commands))


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
    in_features = bool(set(IN_FEATURES) & set(cell.measure))
    if path.exists():
        row = read_document(path)
        # Files of earlier versions do not name these; and finished cells need no data set.
        if "inputs" in row and (order.data is not None or shop.scale.random_data):
            identity["inputs"] = shop.inputs(cell, in_features)
        _require_same(row, identity, order.out, cell)
        return
    identity["inputs"] = shop.inputs(cell, in_features)
    folder = None if cell.benign else shop.attacked_folder(cell)
    suspect = clean if folder is None else read_model(folder)
    subject = Subject(cell, shop, clean, suspect, folder)
    ledger = Ledger(order.out / "work" / cell.key, identity)
    figures: dict[str, Any] = {}
    attacked_s = None if folder is None else attack_seconds(folder)
    seconds = {} if attacked_s is None else {"attack": attacked_s}
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
    jobs: Sequence[_Job], workers: int, progress: Progress
) -> Iterator[tuple[_Job, GenwardenError | None]]:
    executor = executor_for(workers)
    if executor.here:
        with threads(1):  # as a worker
            for job in jobs:
                yield job, _attempt(job, progress)
        return
    for job, told in executor.each(_remote, jobs, Nothing()):
        if isinstance(told, Lost):
            error = GenwardenError(
                "cell/worker-died",
                told.cause,
                "Take fewer --workers, or smaller counts or networks.",
            )
            yield job, error
        else:
            yield job, GenwardenError(*told) if told else None


def _attempt(job: _Job, progress: Progress) -> GenwardenError | None:
    try:
        job.do(progress)
    except GenwardenError as error:
        return error
    except Exception as error:  # one cell's defect must not cost the others
        traceback.print_exc()
        return GenwardenError(
            "cell/unforeseen",
            f"{type(error).__name__}: {error}.",
            "This is a defect of genwarden: report it with the lines above.",
        )
    return None


def _remote(_: None, job: _Job) -> ErrorParts | None:
    """In a worker process."""
    error = _attempt(job, Silent())
    return parts_of(error) if error else None


def _require_same(row: dict[str, Any], identity: dict[str, Any], out: Path, cell: Cell) -> None:
    wanted = json.loads(json.dumps(identity))
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
