"""``genwarden benchmark``: recipes, their tables, the documentation's pages. Imports no torch."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genwarden.cli_options import (
    Address,
    Device,
    Engine,
    GpusPerWorker,
    OutFolder,
    Seed,
    Workers,
    parse_settings,
    print_methods,
)
from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    import torch

    from genwarden.engine.choice import EngineChoice
    from genwarden.engine.progress import Progress

benchmark_app = typer.Typer(no_args_is_help=True, help="Rebuild the numbers of the documentation.")


@benchmark_app.command("list")
def benchmark_list() -> None:
    """List the recipes; `genwarden explain NAME` says what one does and costs."""
    print_methods("recipes")


@benchmark_app.command("run")
def benchmark_run(
    recipe: Annotated[str, typer.Argument(help="See `genwarden benchmark list`.")],
    out: OutFolder,
    data: Annotated[
        str | None, typer.Option("--data", help="Folder that holds the data sets by name.")
    ] = None,
    scale: Annotated[str, typer.Option(help="small, paper or smoke (random data).")] = "small",
    cells: Annotated[
        str | None,
        typer.Option(help="Only cells whose key matches, e.g. 'mnist-dcgan.re*'; commas join."),
    ] = None,
    workers: Workers = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of models that several recipes share.")
    ] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Folder that also gets result file and pictures.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="key=value: repeats=5, red.steps=9000, clean.mnist-dcgan=DIR, ...; or an "
            "argument of a recipe without cells. Repeatable.",
        ),
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Do the chosen cells anew; models are kept.")
    ] = False,
) -> None:
    """Run a recipe: OUT/cells, one file per finished cell, and OUT/result.json.

    Stop it at any time: the same command continues.

    Example: genwarden benchmark run table-1 --data ./data --out ./table-1 --workers 2
    """
    from genwarden.engine.choice import EngineChoice
    from genwarden.engine.device import pick_device
    from genwarden.reports.console import console_progress

    choice = EngineChoice(engine, workers, address, gpus_per_worker)
    given: dict[str, Any] = {
        "scale": scale,
        "cells": cells,
        "workers": workers or 1,
        "cache": cache,
        "restart": restart,
        "publish": publish,
    }
    where = pick_device(device)
    with console_progress() as progress:
        result = run_benchmark(
            recipe,
            out,
            data=data,
            seed=seed,
            device=where,
            progress=progress,
            options=parse_settings(option, flag="--option", dotted=True),
            given=given,
            choice=choice,
        )
    typer.echo(f"Result: {result}\nTables: genwarden benchmark table {recipe} --results {out}")


@benchmark_app.command("population")
def benchmark_population(
    out: OutFolder,
    data: Annotated[
        str | None, typer.Option("--data", help="Folder that holds the data sets by name.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Budgets of the audits; commas join.")
    ] = "quick,standard",
    only: Annotated[
        str, typer.Option(help="Only members whose key matches, e.g. '*.rex.*'; commas join.")
    ] = "*",
    workers: Workers = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="key=value: audit_seeds=10, ... Repeatable."),
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Audit clean and compromised generators: ROC, AUC, found shares, evidence and times.

    Short for `genwarden benchmark run population`. Stop it at any time: the same command
    continues.

    Example: genwarden benchmark population --data ./data --out ./population --workers 2
    """
    from genwarden.engine.choice import EngineChoice
    from genwarden.engine.device import pick_device
    from genwarden.reports.console import console_progress

    choice = EngineChoice(engine, workers, address, gpus_per_worker)
    given = {"budget": budget, "only": only}
    where = pick_device(device)
    with console_progress() as progress:
        result = run_benchmark(
            "population",
            out,
            data=data,
            seed=seed,
            device=where,
            progress=progress,
            options={**parse_settings(option, flag="--option"), **given},
            given={"workers": workers or 1},
            choice=choice,
        )
    typer.echo(f"Result: {result}")


def run_benchmark(
    name: str,
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    options: dict[str, Any],
    given: dict[str, Any],
    choice: EngineChoice | None = None,
) -> Path:
    """Run a recipe of either kind: a list of cells, or a function of its own.

    Args:
        choice: the engine, where another than the local one is wanted.

    Raises:
        GenwardenError: ``benchmark/no-cells``, ``benchmark/option`` and ``usage/unknown-name``,
            before an engine is started; those of the engine and of the recipe.
    """
    from genwarden import registry
    from genwarden.benchmarks.options import checked_options
    from genwarden.benchmarks.recipe import Order
    from genwarden.engine.files import require_writable_folder

    far = choice is not None and choice.name != "local"
    if far:
        given = {**given, "workers": 1}  # how many there are is the engine's matter
    row = registry.find(registry.RECIPES, name, "recipe")
    method = row.load()
    work: partial[Path]
    if row.options.get("cells"):
        order = Order(
            out=out,
            data=Path(data) if data else None,
            seed=seed,
            device=device,
            options=options,
            **given,
        )
        work = partial(method, order, progress)
    else:
        default = {"scale": "small", "workers": 1, "restart": False}
        chosen = {key: value for key, value in given.items() if value != default.get(key)}
        taken = inspect.signature(method).parameters
        if "cells" in chosen and "only" in taken:
            options = {"only": chosen.pop("cells"), **options}
        for_cells = ("cells", "cache", "publish")
        extra = [key for key in chosen if key not in taken or key in for_cells]
        if far and "workers" not in taken:
            extra.append("engine")
        if extra:
            raise GenwardenError(
                "benchmark/no-cells",
                f"The recipe {name} has no cells and does not take --{extra[0]}.",
                f"Leave it away; `genwarden explain {name}` names what it takes (--option).",
            )
        checked = checked_options(name, method, options)
        require_writable_folder(out)
        work = partial(
            method, out, data=data, seed=seed, device=device, progress=progress, **chosen, **checked
        )
    if choice is None or not far:
        return work()
    from genwarden.engine.choice import in_use, open_executor

    require_writable_folder(out)
    with open_executor(choice, folder=out) as executor, in_use(executor):
        return work()


@benchmark_app.command("table")
def benchmark_table(
    recipe: Annotated[str, typer.Argument(help="See `genwarden benchmark list`.")],
    results: Annotated[
        Path, typer.Option(help="--out folder of a run, or a folder of result files.")
    ] = Path("results"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown.")] = False,
) -> None:
    """Print our numbers beside the paper's; cells that are not done yet are shown as "-"."""
    from genwarden.benchmarks.results import tables_of
    from genwarden.reports.console import wide_console

    for table in tables_of(recipe, results):
        if markdown:
            typer.echo(table.markdown())
        else:
            wide_console().print(table.renderable())


@benchmark_app.command("docs")
def benchmark_docs(
    results: Annotated[Path, typer.Argument(help="Folder of result files.")] = Path("results"),
    page: Annotated[Path, typer.Argument(help="Page to write.")] = Path("docs/benchmarks.md"),
) -> None:
    """Write the tables and, beside them, performance.md and one page per attack in attacks/."""
    from genwarden.benchmarks.attack_pages import attack_pages
    from genwarden.benchmarks.docs import render
    from genwarden.benchmarks.performance_page import performance_page
    from genwarden.engine.files import write_atomic

    write_atomic(page, render(results).encode())
    typer.echo(f"Page: {page}")
    speed = page.parent / "performance.md"
    write_atomic(speed, performance_page(results).encode())
    typer.echo(f"Speed: {speed}")
    for name, text in attack_pages(results).items():
        write_atomic(page.parent / "attacks" / name, text.encode())
    typer.echo(f"Attacks: {page.parent / 'attacks'}")
