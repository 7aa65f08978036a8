"""Figures: where things are drawn, and that no input breaks or escapes the drawing."""

from __future__ import annotations

import math
import re
from typing import Literal
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from genwarden.inspections.finding import Chart, Line, Matrix
from genwarden.reports.charts import WIDTH, axis, chart_svg, matrix_svg, null_svg

from .documents import HOSTILE

Style = Literal["line", "histogram", "points"]
STYLES: tuple[Style, ...] = ("line", "histogram", "points")


def parse(figure: Markup) -> ElementTree.Element:
    """The figure as XML, with every number in every attribute checked to be finite."""
    root = ElementTree.fromstring(str(figure))  # noqa: S314 - our own figure
    for element in root.iter():
        for name, value in element.attrib.items():
            assert "nan" not in value or name == "aria-label", (element.tag, value)
            assert "inf" not in value or name == "aria-label", (element.tag, value)
    return root


def chart(style: Style, x: list[float], y: list[float], **more: object) -> Chart:
    fields: dict[str, object] = {
        "title": "t",
        "style": style,
        "x_label": "x",
        "y_label": "y",
        "lines": [Line(name="a", x=x, y=y)],
    }
    return Chart.model_validate(fields | more)


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def test_an_axis_maps_its_ends_to_the_ends_and_its_ticks_are_round() -> None:
    scale = axis([0.0, 400.0], 50, 450)
    assert (scale.at(0), scale.at(100), scale.at(400)) == (50, 150, 450)
    assert scale.ticks() == [0, 100, 200, 300, 400]


def test_a_logarithmic_axis_gives_each_decade_the_same_room() -> None:
    scale = axis([1.0, 1000.0], 0, 300, log=True)
    assert [round(scale.at(v)) for v in (1, 10, 100, 1000)] == [0, 100, 200, 300]
    assert scale.ticks() == [1, 10, 100, 1000]


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e12, 1e12 + 1e-3], [-1e250, 1e250]])
def test_an_axis_of_equal_or_extreme_values_still_has_finite_ticks(values: list[float]) -> None:
    scale = axis(values, 0, 100)
    assert all(math.isfinite(tick) for tick in scale.ticks())
    assert 0 <= scale.at(values[0]) <= 100


def test_a_line_goes_through_its_points() -> None:
    root = parse(chart_svg(chart("line", [0.0, 1.0, 2.0], [0.0, 10.0, 0.0])))
    line = root.find("polyline")
    assert line is not None
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, p.split(","))) for p in line.attrib["points"].split()
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 == y2
    assert y1 < y0  # upwards is smaller in SVG


def test_a_long_line_is_thinned_but_keeps_its_spike() -> None:
    x = [float(i) for i in range(20_000)]
    y = [0.0] * 20_000
    y[12_345] = 9.0
    line = parse(chart_svg(chart("line", x, y))).find("polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert len(points) <= 601
    assert len({p[1] for p in points}) == 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("log", [False, True])
def test_values_that_cannot_be_drawn_are_left_out_and_counted(style: Style, log: bool) -> None:
    broken = chart(
        style, [1.0, math.nan, 3.0, 4.0], [1.0, 2.0, math.inf, 5.0], log_x=log, log_y=log
    )
    assert "2 values not drawn" in words(parse(chart_svg(broken)))


@pytest.mark.parametrize("style", STYLES)
def test_a_chart_without_values_says_so(style: Style) -> None:
    assert words(parse(chart_svg(chart(style, [], [])))) == ["no values to draw"]


def test_several_lines_have_a_legend_and_differ_without_colour() -> None:
    lines = [Line(name=f"series {i}", x=[0.0, 1.0], y=[0.0, float(i)]) for i in range(4)]
    root = parse(chart_svg(chart("line", [], [], lines=lines)))
    assert {f"series {i}" for i in range(4)} <= set(words(root))
    assert len({line.get("stroke-dasharray") for line in root.iter("polyline")}) == 4


def test_the_suspect_s_mark_stands_at_its_value() -> None:
    root = parse(chart_svg(chart("histogram", [0.0, 10.0], [1.0, 1.0], mark_x=5.0)))
    marks = [p.attrib["d"] for p in root.iter("path") if p.get("stroke-width") == "2"]
    assert len(marks) == 1
    assert float(re.findall(r"M([\d.]+)", marks[0])[0]) == pytest.approx((62 + WIDTH - 22) / 2)


def test_the_null_histogram_counts_every_value_once() -> None:
    root = parse(null_svg([0.0] * 30 + [1.0] * 10, 0.5, "score"))
    heights = sorted(float(r.attrib["height"]) for r in root.iter("rect"))
    assert heights == [28.0, 84.0]
    assert "this model: 0.5" in words(root)


@pytest.mark.parametrize("score", [1e9, -1e9])
def test_a_score_far_from_its_null_is_marked_as_off_the_scale(score: float) -> None:
    values = [10 + i / 100 for i in range(100)]
    assert "off the scale" in words(parse(null_svg(values, score, "score")))
    assert "off the scale" not in words(parse(null_svg(values, 10.6, "score")))


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0], [math.nan, 1.0], [1e-9, 1e9]])
@pytest.mark.parametrize("score", [2.0, 0.0, -5.0])
def test_an_odd_null_is_drawn_without_failing(values: list[float], score: float) -> None:
    parse(null_svg(values, score, "score"))


def _cells(root: ElementTree.Element) -> dict[str, int]:
    """Number of unit cells per fill colour, from the run lengths of the paths."""
    group = root.find("g")
    assert group is not None
    return {
        path.attrib["fill"]: sum(map(int, re.findall(r"h(\d+)v1", path.attrib["d"])))
        for path in group.iter("path")
    }


def test_exact_zeros_stay_white_and_small_values_do_not() -> None:
    values = [[0.0, 0.0, 5.0], [1e-6, 1e-6, 0.0]]
    counts = _cells(parse(matrix_svg(_matrix(values))))
    assert sorted(counts.values()) == [1, 2]


def test_a_matrix_that_is_ragged_or_not_finite_is_drawn_with_a_remark() -> None:
    root = parse(matrix_svg(_matrix([[1.0, math.nan, 2.0], [3.0]])))
    assert "orange: not finite" in words(root)
    assert sum(_cells(root).values()) == 4
    assert words(parse(matrix_svg(_matrix([])))) == ["no values to draw"]


def test_a_full_matrix_stays_small() -> None:
    values = [[float((31 * r + 17 * c) % 97) for c in range(64)] for r in range(64)]
    assert len(str(matrix_svg(_matrix(values)))) < 90_000


def test_labels_cannot_leave_their_place() -> None:
    hostile = chart("line", [0.0, 1.0], [0.0, 1.0], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE)
    matrix = Matrix(title=HOSTILE, row_label=HOSTILE, column_label=HOSTILE, values=[[1.0]])
    for figure in (chart_svg(hostile), matrix_svg(matrix), null_svg([1.0, 2.0], 3.0, HOSTILE)):
        root = parse(figure)
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "g",
            "path",
            "rect",
            "text",
            "polyline",
        }
        assert not any(name.startswith("on") for e in root.iter() for name in e.attrib)
        assert "\x1b" not in figure


def _matrix(values: list[list[float]]) -> Matrix:
    return Matrix(title="t", row_label="r", column_label="c", values=values)
