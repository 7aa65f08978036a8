"""ROC curves of the compression study: what no reference comes from, each sort by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genwarden.benchmarks.compression.cases import HELD_OUT, SORTS, main_budget, select
from genwarden.benchmarks.diffusion.cases import Part, decision_scores, raw_scores
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.population.statistics import area, roc

#: Single inspections that are drawn beside the decision, by their largest score over the variants.
_SHOWN = {
    "generator": ("differential-search", "differential-distance", "rounding-statistics"),
    "classifier": ("guarded-lead", "differential-gap", "neural-cleanse"),
}


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """``roc.png``; nothing where clean or attacked models are lacking."""
    panels = []
    for sort, names in _SHOWN.items():
        for half in HELD_OUT:
            part = select(document, sort, half, main_budget(document, sort, half))
            if part.clean and part.compromised:
                panels.append(_panel(part, f"{SORTS[sort]}: {part.title}", names))
    return {"roc.png": plot(panels)} if panels else {}


def _panel(part: Part, title: str, names: Sequence[str]) -> Panel:
    curves = _curve("audit", decision_scores(part.clean), decision_scores(part.compromised))
    for name in names:
        if any(name in row["scores"] for row in part.compromised):
            curves += _curve(name, raw_scores(part.clean, name), raw_scores(part.compromised, name))
    return Panel(
        title,
        "share of the clean models above the threshold",
        "share of the attacked above it",
        curves,
    )


def _curve(name: str, clean: Sequence[float], attacked: Sequence[float]) -> list[Curve]:
    corners, under = roc(clean, attacked), area(clean, attacked)
    if corners is None or under is None:
        return []
    label = f"{name}: {under.value:.4f} (n = {len(attacked)})"
    return [Curve(label, corners.false_alarms, corners.found)]
