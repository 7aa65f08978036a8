"""Running inspections one after another: each is recorded once done, and one may break alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress, Task
from genwarden.engine.seeds import derive_seed
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding
from genwarden.registry import Row

#: What a network that is not ours, or too little memory, can raise inside an inspection.
BREAKDOWNS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    GenwardenError,  # what an inspection asks of our own parts, such as a picture of this size
    LookupError,
    MemoryError,
    RuntimeError,  # also torch's own errors and NotImplementedError
    StopIteration,  # next(parameters()) of a network that has none
    TypeError,
    ValueError,
)


class Ran(NamedTuple):
    """Findings in the order of the rows, and seconds per inspection."""

    findings: list[Finding]
    timing: dict[str, float]


def run_all(
    rows: Mapping[str, Row],
    run: Callable[[Row], dict[str, Finding]],
    ledger: Ledger,
    progress: Progress,
    *,
    under: str = "",
    whole: Task,
    part: str = "",
) -> Ran:
    """Run every row that the ledger does not hold yet.

    Args:
        run: findings of a row by inspection; several where inspections share their work.
        under: the compression that they are run under, which the ledger keeps apart.
        whole: the bar of the whole audit; it moves by one for each row.
        part: which part of the audit this is, as ``variant 2/5``.
    """
    prefix = f"{under}." if under else ""
    timing: dict[str, float] = {}
    findings: dict[str, Finding] = {}
    for name, row in rows.items():
        if name in findings:
            continue
        where = f"{part}{', ' * bool(part)}inspection {len(findings) + 1}/{len(rows)}"
        whole.advance(0, where)
        recorded = ledger.get(prefix + name)
        if recorded is not None:
            findings[name] = Finding.model_validate(recorded["finding"])
            timing[name] = float(recorded["seconds"])
            whole.advance(1, where)
            continue
        progress.message(f"[{where}] {under}{': ' * bool(under)}{name}: {row.summary}")
        started = time.perf_counter()
        group = run(row)
        seconds = (time.perf_counter() - started) / len(group)
        for key, finding in group.items():
            findings[key] = finding
            record = record_of(finding, seconds)
            timing[key] = record["seconds"]
            ledger.put(prefix + key, record)
        whole.advance(len(group), where)
    return Ran([findings[name] for name in rows], timing)


def record_of(finding: Finding, seconds: float) -> dict[str, Any]:
    """What the ledger holds of an inspection."""
    return {"finding": finding.model_dump(mode="json"), "seconds": round(seconds, 3)}


def seeded(row: Row, bench: Any, run_seed: int) -> Finding:
    """Run an inspection; a network that draws noise of its own must give the same finding again."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(run_seed, row.name))
        finding: Finding = row.load()(bench)
    return finding


def guarded(row: Row, run: Callable[[], Finding]) -> Finding:
    """An inspection that breaks becomes a failed finding: the verdict is then inconclusive.

    So does one that measured NaN or infinity: no null can judge it, and JSON cannot hold it.
    """
    try:
        finding = run()
        if not _is_finite(finding.model_dump()):
            raise ArithmeticError("what it measured holds NaN or infinity")
        return finding
    except BREAKDOWNS as error:
        return failed_finding(row, reason_of(error))


def reason_of(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, GenwardenError):
        return f"{error.cause} {error.remedy}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"


def failed_finding(row: Row, reason: str) -> Finding:
    """The finding of an inspection that broke."""
    group = row.location.split(".")[2].partition(":")[0]
    return Finding(
        inspection=row.name,
        group=group,  # type: ignore[arg-type]  # the folder's name is the group
        title=row.name.replace("-", " ").capitalize(),
        outcome="failed",
        summary=reason,
        p_value_reason="the inspection failed",
    )


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
