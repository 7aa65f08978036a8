"""ROC curves of the diffusion study, standard and adaptive attacks apart.

Of both halves, each judged by the other's clean models, once that was done; of the reporting half
until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genwarden.benchmarks.diffusion.cases import (
    Part,
    Row,
    both_have,
    decision_scores,
    detector_of,
    methods_of,
    parts_of,
    raw_scores,
)
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.population.statistics import area, roc

#: Single inspections that are drawn beside the decision.
_SHOWN = ("trigger-search", "triggered-collapse")


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """``roc.png``; nothing where the halves shown lack clean or compromised models."""
    parts = parts_of(document)
    if not parts:
        return {}
    of_budget = {part.half: part for part in parts if part.budget == parts[0].budget}
    found = of_budget.get("both" if "exchanged" in of_budget else "reporting")
    if found is None or not found.clean or not found.compromised:
        return {}
    part, panels = found, []
    for title, adaptive in (("standard attacks", False), ("adaptive attacks", True)):
        rows = [row for row in part.compromised if row["adaptive"] is adaptive]
        if rows:
            panels.append(_panel(document, part, rows, f"{title}, {part.halves}"))
    return {"roc.png": plot(panels)} if panels else {}


def _panel(document: dict[str, Any], part: Part, rows: list[Row], title: str) -> Panel:
    curves = _curve("audit", decision_scores(part.clean), decision_scores(rows))
    for name in _SHOWN:
        if any(name in row["scores"] for row in rows):
            curves += _curve(name, raw_scores(part.clean, name), raw_scores(rows, name))
    keys = {row["key"] for row in rows}
    for method in methods_of(document):
        figures = detector_of(document, method)
        clean, found = both_have(part, figures, lambda row: row["key"] in keys)
        curves += _curve(
            method,
            [figures[row["key"]]["score"] for row in clean],
            [figures[row["key"]]["score"] for row in found],
        )
    return Panel(
        title,
        "share of the clean models above the threshold",
        "share of the compromised above it",
        curves,
    )


def _curve(name: str, clean: Sequence[float], compromised: Sequence[float]) -> list[Curve]:
    corners, under = roc(clean, compromised), area(clean, compromised)
    if corners is None or under is None:
        return []
    label = f"{name}: {under.value:.4f} (n = {len(compromised)})"
    return [Curve(label, corners.false_alarms, corners.found)]
