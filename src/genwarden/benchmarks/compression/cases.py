"""The rows of the compression study, selected and grouped; what tables and figure share."""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.diffusion.cases import BUDGETS, Part, Row, part_of

#: The parts that no reference comes from.
HELD_OUT = ("reporting", "confirmation")
#: How tables call a sort, and both together.
SORTS = {"": "all models", "generator": "generators", "classifier": "classifiers"}


def select(document: dict[str, Any], sort: str, half: str, budget: str) -> Part:
    """The rows of a sort ("" for both), part (or "both" halves, or "all" parts) and budget.

    Successful attacks that no inspected compression wakes are not among them (:func:`uncovered`):
    what an audit inspects is not what they would be deployed as. Those that failed all are.
    """
    rows = [
        row
        for row in document["rows"]
        if sort in ("", row["sort"])
        and (row["clean"] or row["covered"] or not row["succeeded"])
        and not (half == "both" and row["half"] == "confirmation")
    ]
    return part_of({"rows": rows}, "both" if half == "all" else half, budget)


def uncovered(document: dict[str, Any]) -> list[Row]:
    """Successful attacks that sleep in every compression that was inspected."""
    return [
        row
        for row in document["rows"]
        if not row["clean"] and row["succeeded"] and not row["covered"]
    ]


def budgets_of(document: dict[str, Any], sort: str, half: str) -> list[str]:
    """The budgets at which models of a sort were audited in a part, the one that counts first."""
    run = {
        row["budget"]
        for row in document["rows"]
        if sort in ("", row["sort"]) and row["half"] == half
    }
    return [name for name in BUDGETS if name in run]


def main_budget(document: dict[str, Any], sort: str, half: str) -> str:
    """The first of them."""
    return next(iter(budgets_of(document, sort, half)), BUDGETS[0])


def fullest_budget(document: dict[str, Any]) -> str:
    """The budget that most models were audited at, for what is counted once per model."""
    counts = {name: sum(r["budget"] == name for r in document["rows"]) for name in BUDGETS}
    return max(BUDGETS, key=lambda name: counts[name])
