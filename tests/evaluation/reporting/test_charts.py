"""Charts of the page: drawn to scale, within their bounds."""

from xml.etree import ElementTree

import pytest

from losatok_ext.evaluation.reporting.axes import Axis, log_ticks
from losatok_ext.evaluation.reporting.charts import svg
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Line, LineChart


def test_bars_are_drawn_to_scale(bars):
    root = ElementTree.fromstring(svg(bars))
    drawn = [(float(bar.get("x")), float(bar.get("width"))) for bar in root.iter("rect")]
    zero = drawn[0][0]
    assert drawn[0][1] / 1.5 == pytest.approx(drawn[1][1] / 0.25, rel=0.02)
    assert drawn[1][0] + drawn[1][1] == pytest.approx(zero, abs=0.11)
    (mark,) = [line for line in root.iter("line") if line.get("class") == "mark"]
    assert float(mark.get("x1")) == pytest.approx(zero + drawn[0][1] / 1.5, abs=0.2)
    assert "one & two" in [text.text for text in root.iter("text")]


def test_an_axis_ends_at_its_limit():
    root = ElementTree.fromstring(svg(BarChart("c", [Bar("a", 90.0, 20.0)], limit=100.0)))
    ends = [float(line.get("x2")) for line in root.iter("line")]
    assert max(ends) == pytest.approx(640 - 78, abs=0.1)
    assert "100" in [text.text for text in root.iter("text")]
    assert "125" not in [text.text for text in root.iter("text")]


def test_lines_are_drawn_to_scale(lines):
    root = ElementTree.fromstring(svg(lines))
    up, flat = (
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline")
    )
    assert up[1][0] - up[0][0] == pytest.approx(up[2][0] - up[1][0], abs=0.2)  # a decade each
    assert up[0][1] - up[1][1] == pytest.approx(up[1][1] - up[2][1], abs=0.2)
    assert flat[0] == (up[0][0], up[1][1])
    assert {"1", "10", "100", "x", "y axis"} <= {text.text for text in root.iter("text")}


def test_single_points_are_named_and_not_joined():
    points = Line([(1, 0.1), (10, 0.01), (100, 0.001)], ["a", "b", "c"], joined=False)
    root = ElementTree.fromstring(svg(LineChart("c", {"codes": points}, "x", "y", x_log=True, y_log=True)))
    assert not list(root.iter("polyline"))
    heights = [float(circle.get("cy")) for circle in root.iter("circle")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert {"a", "b", "c"} <= {text.text for text in root.iter("text")}


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-6, 3e-6], [12_345.0, 99_999.0], [-3.0, -1.0], [5.0]])
def test_charts_of_any_range_stay_inside(values):
    bars = svg(BarChart("c", [Bar(str(i), v, abs(v) / 3) for i, v in enumerate(values)]))
    lines = svg(LineChart("c", {"l": Line(list(enumerate(values, 1)))}, "x", "y"))
    for text in (bars, lines):
        root = ElementTree.fromstring(text)
        width, height = map(float, root.get("viewBox").split()[2:])
        for element in root.iter():
            assert all(-1 <= float(element.get(name, 0)) <= width for name in ("x", "x1", "x2", "cx"))
            assert all(-1 <= float(element.get(name, 0)) <= height for name in ("y", "y1", "y2", "cy"))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 160, [1, 10, 100]), (1.2, 51, [2, 5, 10, 20, 50]), (3, 3, [3]), (3.1, 3.2, [3.1, 3.2])],
)
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert log_ticks(low, high) == ticks
    axis = Axis([low, high], 0, 100, log=True)
    assert all(0 <= axis(tick) <= 100 for tick in axis.ticks)
