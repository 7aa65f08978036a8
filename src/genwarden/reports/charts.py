"""Charts as inline SVG: numbers in, escaped markup out, no plotting library.

Every coordinate is computed here from finite numbers and every label is escaped, so a figure is
safe whatever the document holds. Lines differ in dash pattern and points in shape, so that no
figure needs colour. Sizes are in user units; the page scales a figure to its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from genwarden.inspections.finding import Chart, Line, Matrix
from genwarden.reports.words import number, visible

WIDTH = 430
_LEFT, _RIGHT, _TOP = 54, 14, 12
_PLOT_HEIGHT = 170
_LEGEND_ROW = 16
_MAX_SERIES = 8
_MAX_LINE_POINTS = 600
_NULL_BINS = 30

_INK, _MUTED, _RULE, _MARK = "#1b2733", "#5d6875", "#dfe4ea", "#a4161a"
_SERIES = ("#1f4e79", "#b3541e", "#4b7f52", "#6b4c8a", "#7a6a1f", "#3f7f8c", "#8c3f5d", "#555555")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "1 2", "5 1", "9 2 1 2")
#: White to dark blue; level 0 is an exact zero and stays white.
_LEVELS = 16


class Axis(NamedTuple):
    """A scale from values to user units; ``first`` and ``last`` are the ends in user units."""

    low: float
    high: float
    first: float
    last: float
    log: bool

    def at(self, value: float) -> float:
        """Where a value stands, in user units; values beyond the ends are drawn at the end."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = 0.5 if high == low else (v - low) / (high - low)
        return self.first + min(max(share, 0.0), 1.0) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """About five round values within the scale."""
        if self.log:
            return _decades(self.low, self.high)
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 5))
        step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 5)
        start = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - start + 1
        return [round((start + i) * step, 12) for i in range(min(max(count, 0), 12))]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last <= first:
        return [low, high]
    stride = -(-(last - first) // 5)
    return [10.0**i for i in range(first, last + 1, stride)]


def axis(values: Sequence[float], first: float, last: float, *, log: bool = False) -> Axis:
    """A scale that holds all values, at least one; ``log`` needs positive values."""
    low, high = min(values), max(values)
    if log:
        low, high = (low / 2, high * 2) if high <= low * 1.0001 else (low, high)
        return Axis(max(low, 1e-300), min(high, 1e300), first, last, True)
    # A span below the resolution of the numbers themselves cannot be divided into ticks.
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-12):
        air = abs(high) / 2 or 1.0
        return Axis(low - air, high + air, first, last, False)
    return Axis(low, high, first, last, False)


def chart_svg(chart: Chart) -> Markup:
    """A chart of lines, bars or points, with its axes, legend and the suspect's mark."""
    lines, left_out = _drawable(chart)
    mark = chart.mark_x
    if mark is not None and not _fits(mark, chart.log_x):
        mark = None
    if not any(line.x for line in lines):
        return _svg(40, chart.title, [_text(WIDTH / 2, 24, "no values to draw", "middle")])
    legend = _legend(lines, chart) if len(lines) > 1 else []
    top = _TOP + _LEGEND_ROW * len(legend)
    bottom = top + _PLOT_HEIGHT
    xs = [v for line in lines for v in line.x] + ([] if mark is None else [mark])
    ys = [v for line in lines for v in line.y]
    if chart.style == "histogram" and not chart.log_y:
        ys = [*ys, 0.0]
    x = axis(xs, _LEFT + 8, WIDTH - _RIGHT - 8, log=chart.log_x)
    # Bars stand on the axis; lines and points keep clear of it.
    y = axis(ys, bottom - (0 if chart.style == "histogram" else 8), top + 6, log=chart.log_y)
    draw = {"line": _line, "histogram": _bars, "points": _points}[chart.style]
    parts = [*_frame(x, y, bottom, chart.x_label, chart.y_label), *legend]
    parts += [draw(line, x, y, index) for index, line in enumerate(lines)]
    if mark is not None:
        parts += _rule(x.at(mark), top, bottom, "this model")
    if left_out:
        parts.append(_text(WIDTH - _RIGHT, bottom + 50, f"{left_out} values not drawn", "end"))
    return _svg(bottom + (56 if left_out else 42), chart.title, parts)


def null_svg(values: Sequence[float], score: float, name: str) -> Markup:
    """Where a score stands among scores under the null: a histogram and a mark.

    A score far outside is drawn at the edge with an arrow, so that the histogram stays readable.
    """
    finite = [v for v in values if math.isfinite(v)]
    inside = [v for v in finite if v > 0]
    log = len(inside) == len(finite) > 0 and max(finite) / min(finite) > 100
    span = max(finite) - min(finite) if finite else 0.0
    reach = max(span, 1e-9 * max((abs(v) for v in finite), default=1.0))
    far = bool(finite) and not log and not (-3 * reach <= score - min(finite) <= 4 * reach)
    shown = finite if far or not _fits(score, log) else [*finite, score]
    top, bottom = _TOP + 16, _TOP + 16 + 96
    x = axis(
        shown, _LEFT - 30, WIDTH - _RIGHT - (90 if far and score > max(finite) else 8), log=log
    )
    counts = [0] * _NULL_BINS
    width = (x.last - x.first) / _NULL_BINS
    for v in finite:
        counts[min(int((x.at(v) - x.first) / width), _NULL_BINS - 1)] += 1
    tallest = max(*counts, 1)
    parts = [
        f'<rect x="{x.first + i * width + 0.5:.1f}" y="{bottom - 84 * count / tallest:.1f}" '
        f'width="{width - 1:.1f}" height="{84 * count / tallest:.1f}" fill="#9fb3c8"/>'
        for i, count in enumerate(counts)
        if count
    ]
    parts += _x_axis(x, bottom, name)
    at = WIDTH - _RIGHT - 8 if far and score > max(finite) else x.at(score)
    parts += _rule(at, top, bottom, f"this model: {number(score)}")
    if far:
        direction = 1 if score > max(finite) else -1
        tip = at + 7 * direction
        parts.append(
            f'<path d="M{at:.1f} {bottom - 20}H{tip:.1f}m{-4 * direction} -4l{4 * direction} 4'
            f'l{-4 * direction} 4" fill="none" stroke="{_MARK}" stroke-width="1.5"/>'
        )
        parts.append(
            _text(
                at - 8 * direction,
                bottom - 16,
                "off the scale",
                "end" if direction > 0 else "start",
            )
        )
    return _svg(bottom + 42, f"{name}: this model against the null distribution", parts)


def matrix_svg(matrix: Matrix) -> Markup:
    """A heat map; exact zeros stay white, so that blocks of zeros can be seen."""
    rows = [[v if math.isfinite(v) else -1.0 for v in row] for row in matrix.values]
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        return _svg(40, matrix.title, [_text(WIDTH / 2, 24, "no values to draw", "middle")])
    largest = max(max(row, default=0.0) for row in rows)
    cell = min(260 / columns, 260 / len(rows), 36)
    left, top = _LEFT - 20, _TOP + 6
    cells: dict[int, list[str]] = {}
    for r, row in enumerate(rows):
        start = 0
        for level, run in groupby(_level(v, largest) for v in row):
            length = len(list(run))
            if level:
                cells.setdefault(level, []).append(f"M{start} {r}h{length}v1h-{length}z")
            start += length
    wide, high = columns * cell, len(rows) * cell
    parts = [f'<g transform="translate({left} {top}) scale({cell:.4f})">']
    parts += [f'<path fill="{_shade(lv)}" d="{"".join(d)}"/>' for lv, d in sorted(cells.items())]
    parts += [
        "</g>",
        f'<rect x="{left}" y="{top}" width="{wide:.1f}" height="{high:.1f}" fill="none" '
        f'stroke="{_MUTED}" stroke-width="1"/>',
        _text(left + wide / 2, top + high + 16, matrix.column_label, "middle"),
        _upright(left - 10, top + high / 2, matrix.row_label),
        *_scale_bar(left + wide + 24, top, min(high, 120), largest),
    ]
    if -1 in cells:
        parts.append(_text(left + wide + 24, top + 150, "orange: not finite", "start"))
    return _svg(top + high + 28, matrix.title, parts)


def _drawable(chart: Chart) -> tuple[list[Line], int]:
    """The finite points of at most ``_MAX_SERIES`` lines, and how many values were left out."""
    kept, left_out = [], 0
    for index, line in enumerate(chart.lines):
        pairs = [
            (x, y)
            for x, y in zip(line.x, line.y, strict=False)
            if _fits(x, chart.log_x) and _fits(y, chart.log_y)
        ]
        if index >= _MAX_SERIES:
            left_out += max(len(line.x), len(line.y))
            continue
        left_out += max(len(line.x), len(line.y)) - len(pairs)
        kept.append(Line(name=line.name, x=[p[0] for p in pairs], y=[p[1] for p in pairs]))
    return kept, left_out


def _fits(value: float, log: bool) -> bool:
    return math.isfinite(value) and abs(value) < 1e300 and (value > 0 or not log)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``_MAX_LINE_POINTS`` points that keep every local extreme of the line."""
    size = -(-2 * len(points) // _MAX_LINE_POINTS)
    if size <= 2:
        return points
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        lowest, highest = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({lowest, highest}, key=part.index)
    return kept


def _line(line: Line, x: Axis, y: Axis, index: int) -> str:
    points = _thinned([(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)])
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{path}" fill="none" {_stroke(index)}/>'


def _bars(line: Line, x: Axis, y: Axis, index: int) -> str:
    centres = sorted(x.at(v) for v in line.x)
    half = min((b - a for a, b in pairwise(centres) if b > a), default=16.0) / 2
    base = y.first
    path = "".join(
        f"M{x.at(a) - half:.1f} {base:.1f}V{y.at(b):.1f}h{2 * half:.1f}V{base:.1f}z"
        for a, b in zip(line.x, line.y, strict=True)
    )
    # Only the first series is filled; the others are outlines on top of it.
    fill = "#c5d3e2" if index == 0 else "none"
    return f'<path d="{path}" fill="{fill}" {_stroke(index, 0.8 if index == 0 else 1.5)}/>'


def _points(line: Line, x: Axis, y: Axis, index: int) -> str:
    path = "".join(_shape(x.at(a), y.at(b), index) for a, b in zip(line.x, line.y, strict=True))
    color = _SERIES[index % len(_SERIES)]
    return f'<path d="{path}" fill="{color}" fill-opacity="0.55" stroke="{color}"/>'


def _shape(a: float, b: float, index: int) -> str:
    return (
        f"M{a - 2.5:.1f} {b:.1f}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0z",
        f"M{a - 2.5:.1f} {b - 2.5:.1f}h5v5h-5z",
        f"M{a:.1f} {b - 3.5:.1f}l3.5 6h-7z",
        f"M{a:.1f} {b - 3.5:.1f}l3 3.5l-3 3.5l-3 -3.5z",
    )[index % 4]


def _stroke(index: int, width: float = 1.6) -> str:
    dash = _DASHES[index % len(_DASHES)]
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_SERIES[index % len(_SERIES)]}" stroke-width="{width}"{pattern}'


def _legend(lines: list[Line], chart: Chart) -> list[str]:
    rows = []
    for index, line in enumerate(lines):
        y = _TOP + _LEGEND_ROW * index
        if chart.style == "points":
            color = _SERIES[index % len(_SERIES)]
            sign = f'<path d="{_shape(_LEFT + 14, y, index)}" fill="{color}"/>'
        else:
            sign = f'<path d="M{_LEFT + 2} {y}h24" {_stroke(index)}/>'
        rows.append(sign + _text(_LEFT + 34, y + 4, line.name, "start", color=_INK, limit=52))
    return rows


def _frame(x: Axis, y: Axis, bottom: float, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(
            f'<path d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}" stroke="{_RULE}" stroke-width="1"/>'
        )
        parts.append(_text(_LEFT - 6, at + 4, number(tick), "end", limit=9))
    parts += _x_axis(x, bottom, x_label)
    parts.append(_upright(12, (bottom + y.last) / 2, y_label))
    return parts


def _x_axis(x: Axis, bottom: float, name: str) -> list[str]:
    start = min(x.first - 8, _LEFT)
    parts = [
        f'<path d="M{start:.1f} {bottom:.1f}H{WIDTH - _RIGHT}" stroke="{_MUTED}" stroke-width="1"/>'
    ]
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<path d="M{at:.1f} {bottom:.1f}v4" stroke="{_MUTED}" stroke-width="1"/>')
        parts.append(_text(at, bottom + 17, number(tick), "middle", limit=9))
    parts.append(_text((start + WIDTH - _RIGHT) / 2, bottom + 35, name, "middle", limit=64))
    return parts


def _rule(at: float, top: float, bottom: float, words: str) -> list[str]:
    anchor, shift = ("end", -6) if at > WIDTH / 2 else ("start", 6)
    return [
        f'<path d="M{at:.1f} {top - 10:.1f}V{bottom:.1f}" stroke="{_MARK}" stroke-width="2"/>',
        _text(at + shift, top - 2, words, anchor, color=_MARK, weight=600),
    ]


def _scale_bar(left: float, top: float, high: float, largest: float) -> list[str]:
    step = high / _LEVELS
    parts = [
        f'<rect x="{left:.1f}" y="{top + high - (i + 1) * step:.1f}" width="12" '
        f'height="{step + 0.3:.1f}" fill="{_shade(i + 1)}"/>'
        for i in range(_LEVELS)
    ]
    return [
        *parts,
        _text(left + 18, top + 10, number(largest), "start"),
        _text(left + 18, top + high, "0 (white: exactly 0)", "start"),
    ]


def _level(value: float, largest: float) -> int:
    if value < 0:
        return -1
    if value == 0 or largest <= 0:
        return 0
    return max(1, math.ceil(_LEVELS * value / largest))


def _shade(level: int) -> str:
    if level < 0:
        return "#e8a13c"
    share = 0.12 + 0.88 * level / _LEVELS
    red, green, blue = (round(255 + (end - 255) * share) for end in (16, 54, 92))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str,
    *,
    color: str = _MUTED,
    weight: int = 400,
    limit: int = 40,
) -> str:
    shown = visible(words)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
        f'font-size="12" font-weight="{weight}">{escape(shown)}</text>'
    )


def _upright(x: float, y: float, words: str) -> str:
    shown = visible(words)
    shown = shown if len(shown) <= 32 else shown[:31] + "…"
    return (
        f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="middle" '
        f'fill="{_MUTED}" font-size="12">{escape(shown)}</text>'
    )


def _svg(height: float, title: str, parts: Sequence[str]) -> Markup:
    name = escape(visible(title))
    return Markup(  # noqa: S704 - built above from finite numbers and escaped labels only
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">'
        + "".join(parts)
        + "</svg>"
    )
