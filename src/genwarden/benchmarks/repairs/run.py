"""Makes the suspects, does the cells, collects their files: the run behind the repair recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genwarden import __version__
from genwarden.auditing.audit import environment
from genwarden.benchmarks.population.plan import Member
from genwarden.benchmarks.repairs.cell import AUTO, BaseJob, CellJob, Orders, SuspectJob
from genwarden.benchmarks.repairs.jobs import Failure, do_all
from genwarden.benchmarks.repairs.suspects import bases_of
from genwarden.benchmarks.results import CELLS, read_document
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.registry import REPAIRS


def do_cells(
    chosen: Sequence[Member],
    repairs: Sequence[str],
    orders: Orders,
    *,
    workers: int,
    restart: bool,
    progress: Progress,
) -> dict[str, Failure]:
    """Every chosen suspect by every chosen repair; returns what failed, by name of the cell."""
    jobs = [CellJob(member, name, orders) for name in repairs for member in chosen]
    return do_jobs(jobs, orders, workers=workers, restart=restart, progress=progress)


def do_jobs(
    jobs: Sequence[CellJob], orders: Orders, *, workers: int, restart: bool, progress: Progress
) -> dict[str, Failure]:
    """The given cells, their suspects first; returns what failed, by name of the cell."""
    if restart:
        for job in jobs:
            job.forget()
    chosen = list({job.member.key: job.member for job in jobs}.values())
    lost = prepare(chosen, orders, workers=workers, progress=progress)
    for job in jobs:
        if job.member.key in lost:
            job.write_failure(lost[job.member.key])
    possible = [job for job in jobs if job.member.key not in lost]
    found = do_all(possible, workers, progress, "cells")
    for job, failure in found:
        if failure.code == "cell/worker-died":  # it could not write that down itself
            job.write_failure(failure)
    failed = {job.name: failure for job, failure in found}
    return {**{j.name: lost[j.member.key] for j in jobs if j.member.key in lost}, **failed}


def prepare(
    chosen: Sequence[Member], orders: Orders, *, workers: int, progress: Progress
) -> dict[str, Failure]:
    """Make and measure the suspects; returns what failed, by key of the member."""
    bases = [base for base in bases_of(chosen, orders.shelf) if not orders.shelf.present(base)]
    made = do_all([BaseJob(base, orders) for base in bases], workers, progress, "clean models")
    without_base = {job.name: failure for job, failure in made}
    lost = {
        member.key: without_base[orders.shelf.base(member).key]
        for member in chosen
        if orders.shelf.base(member).key in without_base
    }
    suspects = [SuspectJob(m, orders) for m in chosen if m.key not in lost]
    measured = do_all(suspects, workers, progress, "suspects")
    return {**lost, **{job.name: failure for job, failure in measured}}


def collected(recipe: str, out: Path, plan: Sequence[Member], seed: int) -> dict[str, Any]:
    """All cells of a run, whichever commands did them, and their suspects, for the result file.

    Cells of another version or seed that lie in the same folder are left out.
    """
    places = {member.key: place for place, member in enumerate(plan)}
    columns = [AUTO.name, *REPAIRS]
    rows = [read_document(path) for path in sorted((out / CELLS).glob("*.json"))]
    rows = [row for row in rows if row.get("recipe") == recipe and row.get("member") in places]
    rows = [row for row in rows if _made_with(row, seed) and row["repair"] in columns]
    rows.sort(key=lambda row: (places[row["member"]], columns.index(row["repair"])))
    keys = dict.fromkeys(row["member"] for row in rows)
    files = {key: out / "suspects" / f"{key}.json" for key in keys}
    return {
        "command": "; ".join(dict.fromkeys(row["command"] for row in rows)),
        "suspects": {key: read_document(path) for key, path in files.items() if path.exists()},
        # The head of the result file names the machine once.
        "rows": [{k: v for k, v in row.items() if k != "environment"} for row in rows],
    }


def _made_with(row: dict[str, Any], seed: int) -> bool:
    # A cell that failed before it began states neither.
    return (row.get("version", __version__), row.get("seed", seed)) == (__version__, seed)


def raise_failures(failed: dict[str, Failure]) -> None:
    """Tell the user what failed, once the result file is written.

    Raises:
        GenwardenError: ``benchmark/other-run``, ``benchmark/cells-failed``.
    """
    if not failed:
        return
    other = [failure for failure in failed.values() if failure.code == "benchmark/other-run"]
    if other:
        raise GenwardenError(
            "benchmark/other-run",
            other[0].cause,
            "Choose another --out folder, or add --restart to do the chosen cells anew.",
        )
    first, failure = next(iter(failed.items()))
    raise GenwardenError(
        "benchmark/cells-failed",
        f"{len(failed)} cells failed; the first, {first}, with {failure.code}: {failure.cause}",
        "The result file names them; repeat the command to try these again.",
    )


def command_of(recipe: str, seed: int, data: str | None, options: dict[str, Any]) -> str:
    """The command that repeats a run, without the names of this machine's folders.

    Args:
        options: empty ones (and 0) are left out.
    """
    words = [f"genwarden benchmark run {recipe}", *(["--data DATA"] if data else []), "--out DIR"]
    for key, value in options.items():
        if not value:
            continue
        text = str(value)
        quoted = f"'{key}={text}'" if re.search(r"[*?\[]", text) else f"{key}={text}"
        words.append(f"--option {quoted}")
    return " ".join([*words, *([f"--seed {seed}"] if seed else [])])


def result_head(recipe: str, seed: int, device: Any) -> dict[str, Any]:
    """What every result file of these recipes begins with."""
    return {"recipe": recipe, "seed": seed, "environment": environment(device)}
