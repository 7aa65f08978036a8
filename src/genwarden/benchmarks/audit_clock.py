"""What recipes share that time audits: run, take the time, and say where it went."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.tables import Table, answer
from genwarden.engine.progress import Progress


def timed_audits(
    audit: Callable[[str, Path], AuditDocument],
    budgets: Sequence[str],
    repeats: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Audit at every budget, ``repeats`` times, and take the time.

    Args:
        audit: given a budget and an empty folder for its work.

    Returns:
        One row per audit: ``budget``, ``verdict``, ``seconds`` on the clock, ``cpu_seconds`` of all
        threads, ``timing`` in seconds by inspection.
    """
    rows: list[dict[str, Any]] = []
    bar = progress.task("audits", len(budgets) * repeats)
    for name in budgets:
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            with tempfile.TemporaryDirectory() as work:
                document = audit(name, Path(work))
            rows.append(
                {
                    "budget": name,
                    "verdict": document.verdict,
                    "seconds": round(time.perf_counter() - wall, 2),
                    "cpu_seconds": round(time.process_time() - cpu, 2),
                    "timing": document.timing,
                }
            )
            bar.advance(1, name)
    return rows


def clock_table(
    title: str, rows: Sequence[dict[str, Any]], most_seconds: float, notes: list[str]
) -> Table:
    """Median seconds of each budget, beside what was asked.

    Args:
        most_seconds: that an audit may take on the clock.
    """
    shown = []
    for budget, found in _by_budget(rows).items():
        seconds = median(row["seconds"] for row in found)
        shown.append(
            [
                budget,
                str(len(found)),
                f"{seconds:.1f}",
                f"{median(row['cpu_seconds'] for row in found):.1f}",
                answer(seconds <= most_seconds),
            ]
        )
    columns = ["budget", "audits", "seconds", "core-seconds", f"within {most_seconds:g} s"]
    return Table(title, columns, shown, notes)


def parts_table(column: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Seconds of each inspection in the first audit of each budget, over all variants.

    Args:
        column: heading of the seconds.
    """
    parts = []
    for budget, found in _by_budget(rows).items():
        spent: dict[str, float] = {}
        for key, value in found[0]["timing"].items():
            if key != "total":
                inspection = key.rpartition(": ")[2]
                spent[inspection] = spent.get(inspection, 0.0) + value
        parts += [[budget, inspection, f"{value:.1f}"] for inspection, value in spent.items()]
    return Table("Where it goes", ["budget", "inspection", column], parts)


def _by_budget(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["budget"], []).append(row)
    return found
