"""Rows of an earlier result of the diffusion study, beside those of a run whose models are there.

They are taken as they were measured, and judged with the others.

Training and audits are seeded, so a run begun anew makes the same models: the members that both
runs audited show how far that holds. A member whose attack is planned with other steps today is
another model; its row is left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genwarden.benchmarks.results import read_result
from genwarden.errors import GenwardenError

Row = dict[str, Any]


def read_earlier(path: Path, recipe: str, seed: int) -> dict[str, Any]:
    """The result of an earlier run of ``recipe``.

    Raises:
        GenwardenError: ``benchmark/no-results`` for another file; ``benchmark/other-orders`` for
            another seed.
    """
    found = read_result(path, recipe, "Name a result.json of it, or the published one in results/.")
    if found.get("seed") != seed:
        raise GenwardenError(
            "benchmark/other-orders",
            f"{path} was made with the seed {found.get('seed')}, this run with {seed}.",
            "Repeat its seed, or leave out earlier.",
        )
    return found


def with_earlier(
    rows: Sequence[Row],
    before: dict[str, Any],
    plan: Mapping[str, int | None],
    budgets: Sequence[str],
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of this run, and of the earlier one where this has none; in the order of the plan.

    Args:
        plan: by member key, the steps of its attack; None for clean models.

    Returns:
        The rows, of which each that was taken says in ``made_by`` what made it; and what the result
        says of them: ``keys`` of those taken, ``other`` of those that were planned otherwise, then
        or in a run before (what others measured on them is of other models), and in ``again``, of
        what both audited, the largest difference of a score, with the names of scores that only one
        of them has; ``again_before`` is what the earlier result said of models that it shared with
        one before it.
    """

    def key_of(row: Row) -> tuple[str, str]:
        return row["key"], row["budget"]

    here = {key_of(row): row for row in rows}
    rows_before = [row for row in before["rows"] if row["budget"] in budgets]
    there = {key_of(row): row for row in rows_before if row.get("steps") == plan.get(row["key"])}
    other = {row["key"] for row in rows_before} - {key for key, _ in there}
    wanted = [(key, budget) for budget in budgets for key in plan]
    maker = {name: before[name] for name in ("genwarden", "environment")}
    taken = {key: {"made_by": maker, **row} for key, row in there.items() if key not in here}
    merged = {**taken, **here}
    again = [
        {"key": key[0], "budget": key[1], **_apart(here[key], there[key])}
        for key in wanted
        if key in here and key in there
    ]
    told = before.get("earlier") or {}
    compared = {(one["key"], one["budget"]) for one in again}
    said = {
        "keys": sorted({key for key, _ in taken}),
        "other": sorted(other.union(told.get("other", []))),
        "again": again,
        "again_before": [
            one
            for one in [*told.get("again", []), *told.get("again_before", [])]
            if (one["key"], one["budget"]) not in compared
        ],
    }
    return [merged[key] for key in wanted if key in merged], said


def require_repeated(carried: Mapping[str, Any], budgets: Sequence[str]) -> None:
    """Let references be published of two runs only where both measure the same.

    Args:
        carried: what :func:`with_earlier` says.

    Raises:
        GenwardenError: ``benchmark/other-run`` if no member was audited by both runs at one of the
            budgets, or if the scores of one that was are not the same to the last bit.
    """
    if cause := _apart_in(carried, budgets):
        raise GenwardenError(
            "benchmark/other-run",
            cause,
            "References are published of runs that measure the same: make all of them here.",
        )


def repeats(carried: Mapping[str, Any], budgets: Sequence[str]) -> bool:
    """Whether :func:`require_repeated` lets pass what :func:`with_earlier` says."""
    return not _apart_in(carried, budgets)


def _apart_in(carried: Mapping[str, Any], budgets: Sequence[str]) -> str:
    """Why two runs do not measure the same, or cannot be known to; "" if they do."""
    for name in budgets:
        again = [one for one in carried["again"] if one["budget"] == name]
        apart = [one["key"] for one in again if not _same(one)]
        if apart:
            return f"The scores of {apart[0]} differ between this run and the earlier one."
        if not again:
            return f"No model was audited by both this run and the earlier one ({name} budget)."
    return ""


def _same(again: Mapping[str, Any]) -> bool:
    return again["difference"] == 0.0 and not again["in_one_only"]


def _apart(a: Row, b: Row) -> dict[str, Any]:
    shared = a["scores"].keys() & b["scores"].keys()
    apart = [abs(a["scores"][name] - b["scores"][name]) for name in shared]
    return {
        "difference": max(apart, default=None),
        "in_one_only": sorted(a["scores"].keys() ^ b["scores"].keys()),
    }
