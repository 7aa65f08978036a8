"""Pictures of the recipe ``population``: ROC curves and the scores of every model, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genwarden.auditing.verdict import ALPHA
from genwarden.benchmarks.population.audits import (
    Audit,
    Part,
    by_attack,
    decision_scores,
    parts,
    read_audits,
)
from genwarden.benchmarks.population.statistics import area, roc

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {
    "standard": ("-", "#1f4e79"),
    "quick": ("--", "#c55a11"),
    "thorough": (":", "#6a1b9a"),
}
_COLUMNS = 5
#: Scores from here on are drawn on the top line: the largest stand for structure, not for a size.
TOP = 20.0
#: Marker and whether it is filled.
_MARKS = {"evidence": ("o", True), "none_found": ("o", False), "inconclusive": ("x", True)}
_OTHER = ("D", False)
_CLEAN_COLOUR, _ATTACK_COLOUR, _FAILED_COLOUR = "#2e7d32", "#b3261e", "#9e9e9e"
_GOLDEN = 0.618_033_988_749_895


def draw(rows: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """``roc.png`` and ``scores.png`` of the reporting half; the same rows give the same bytes.

    Args:
        rows: of a result file, as many as there are.

    Raises:
        GenwardenError: ``benchmark/unreadable``.
    """
    # The plan's seed matters for what is missing, which no picture shows.
    found = [part for part in parts(read_audits(rows), 0) if part.half == "reporting"]
    pictures = {}
    if any(part.clean and part.compromised for part in found):
        pictures["roc.png"] = _draw_roc(found)
    if found:
        pictures["scores.png"] = _draw_scores(found)
    return pictures


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Neither date nor version: the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _draw_roc(found: Sequence[Part]) -> bytes:
    """One small panel for all attacks and one for each, a line per budget."""
    names = ["all attacks"]
    names += list(by_attack([audit for part in found for audit in part.compromised]))
    lines = -(-len(names) // _COLUMNS)
    figure = _figure(2.3 * _COLUMNS, 2.3 * lines + 0.4)
    panels = list(figure.subplots(lines, _COLUMNS, squeeze=False, sharex=True, sharey=True).flat)
    for name, axes in zip(names, panels, strict=False):
        for part in found:
            of_part = by_attack(part.compromised)
            audits = part.compromised if name == names[0] else of_part.get(name, [])
            _roc_line(axes, part, audits)
        axes.set_title(name, fontsize=9, fontweight="bold" if name == names[0] else "normal")
        axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="lower right", frameon=False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - _COLUMNS) : len(names)]:
        axes.tick_params(labelbottom=True)  # nothing is shown below it
    figure.supxlabel("share of the clean models above the threshold", fontsize=9)
    figure.supylabel("share of the compromised above it", fontsize=9)
    return _png(figure)


def _roc_line(axes: Axes, part: Part, audits: Sequence[Audit]) -> None:
    clean, scores = decision_scores(part.clean), decision_scores(audits)
    corners, under = roc(clean, scores), area(clean, scores)
    if corners is None or under is None:
        return
    style, colour = _LINES[part.budget]
    axes.plot(
        corners.false_alarms,
        corners.found,
        linestyle=style,
        color=colour,
        linewidth=1.8,
        clip_on=False,
        label=f"{part.budget}: {under.value:.4f} (n = {len(scores)})",
    )


def _draw_scores(found: Sequence[Part]) -> bytes:
    """A column of models for the clean and for each attack, a panel per budget."""
    everything = [a for part in found for a in (*part.compromised, *part.failed)]
    names = ["clean", *by_attack(everything)]
    figure = _figure(max(5.0, 0.85 * len(names) + 1.5), 3.6 * len(found))
    for part, axes in zip(found, figure.subplots(len(found), 1, squeeze=False).flat, strict=True):
        groups = {"clean": list(part.clean)}
        groups.update(by_attack([*part.compromised, *part.failed]))
        for place, name in enumerate(names):
            _strip(axes, place, groups.get(name, []))
        clean = decision_scores(part.clean)
        if clean:
            highest = max(clean)
            axes.axhline(
                min(highest, TOP),
                color=_CLEAN_COLOUR,
                linewidth=1,
                linestyle="--",
                label="highest clean score",
            )
        level = f"level of the verdict ({ALPHA:g})"
        axes.axhline(-math.log10(ALPHA), color="black", linewidth=0.8, linestyle=":", label=level)
        axes.axvline(0.5, color="#cccccc", linewidth=0.8)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(-0.8, TOP + 1.2)
        axes.set_yticks([0, 5, 10, 15, TOP], ["0", "5", "10", "15", f"{TOP:g} or more"])
        axes.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
        axes.set_ylabel("score (-log10 p)")
        axes.set_title(f"reporting half, {part.budget} budget", fontsize=10)
    _legend(figure, next(iter(figure.axes)))
    return _png(figure)


def _strip(axes: Axes, place: int, audits: Sequence[Audit]) -> None:
    """Models of a column, spread sideways by their rank so that equal scores stay apart."""
    for rank, audit in enumerate(sorted(audits, key=lambda a: (a.score, a.key))):
        colour = _CLEAN_COLOUR if audit.clean else _ATTACK_COLOUR
        colour = colour if audit.counts else _FAILED_COLOUR
        mark, filled = _MARKS.get(audit.verdict, _OTHER)
        axes.plot(
            place + 0.6 * ((rank * _GOLDEN) % 1 - 0.5),
            min(audit.score, TOP),
            marker=mark,
            markersize=5,
            linestyle="none",
            markeredgecolor=colour,
            markerfacecolor=colour if filled else "none",
            alpha=0.85,
            clip_on=False,
        )


def _legend(figure: Figure, axes: Axes) -> None:
    """What marks and colours mean, once, below the panels."""
    from matplotlib.lines import Line2D

    entries: list[Artist] = [
        Line2D(
            [],
            [],
            marker=mark,
            linestyle="none",
            color="#555555",
            markerfacecolor="#555555" if filled else "none",
            label=f"verdict: {verdict}",
        )
        for verdict, (mark, filled) in _MARKS.items()
    ]
    colours = {
        "clean": _CLEAN_COLOUR,
        "compromised": _ATTACK_COLOUR,
        "failed attack (in no rate)": _FAILED_COLOUR,
    }
    entries += [
        Line2D([], [], marker="s", linestyle="none", color=colour, label=name)
        for name, colour in colours.items()
    ]
    entries += axes.get_legend_handles_labels()[0]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8)
