"""Line plots of the recipes as PNG, by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Curve:
    """A line; ``error`` is the half length of each bar, empty for none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False


def plot(panels: Sequence[Panel]) -> bytes:
    """The panels side by side as PNG; lines differ in dash and marker, not in colour alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for index, curve in enumerate(panel.curves):
            axes.errorbar(
                curve.x,
                curve.y,
                yerr=list(curve.error) or None,
                label=curve.name,
                linestyle=_STYLES[index % len(_STYLES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                capsize=3,
            )
        if panel.log_x:
            axes.set_xscale("log")
        if panel.log_y:
            # A bar that reaches below zero is cut at the smallest value shown.
            axes.set_yscale("log", nonpositive="clip")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_title(panel.title)
        if panel.curves:
            axes.legend()
    buffer = io.BytesIO()
    # Neither date nor version: the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
