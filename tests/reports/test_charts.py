"""Charts: well-formed, true to their numbers, safe with any text."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from townlet.reports.html import charts
from townlet.reports.html.charts import Bar, Series, bar_chart, line_chart, stacked_chart
from townlet.support.text import number

NAN = float("nan")
EVIL = '<script>alert("1")</script> & co'


def points(svg: str, cls: str) -> list[list[tuple[float, float]]]:
    """The vertices of every path of a class, in the picture's units."""
    found = []
    for path in ET.fromstring(svg).iter("path"):
        if path.get("class") == cls:
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter("text")]


def test_a_line_lies_where_its_numbers_are():
    svg = line_chart([Series("q", [0, 10, 40], [1.0, 3.0, 2.0])], "Q", "steps", "q")
    (((ax, ay), (bx, by), (cx, cy)),) = points(svg, "line")
    assert (bx - ax) / (cx - ax) == pytest.approx(0.25, abs=1e-3)
    assert (ay - cy) / (ay - by) == pytest.approx(0.5, abs=2e-3)  # up is smaller
    assert by < cy < ay


def test_a_log_axis_is_logarithmic_and_leaves_out_what_has_no_logarithm():
    svg = line_chart([Series("loss", [0, 1, 2, 3], [1.0, 10.0, 0.0, 100.0])], "Loss", "steps", "loss", log=True)
    (((_, a), (_, b), (_, c)),) = points(svg, "line")
    assert a - b == pytest.approx(b - c, abs=0.2)


def test_a_log_axis_has_ticks_however_little_it_spans():
    for low, high in ((0.45, 0.6), (0.011, 0.013), (3.0, 250.0), (1e-6, 1.0)):
        axis = charts._Axis.over([low, high], 0.0, 1.0, log=True, zero=False)
        assert 2 <= len(axis.ticks) <= 9
        assert all(axis.low <= t <= axis.high for t in axis.ticks)


def test_events_stand_where_they_happened():
    svg = line_chart([Series("q", [0, 100], [1.0, 2.0])], "Q", "x", "y", events=[("half", 50), ("later", 200)])
    guide = [p.get("d") or "" for p in ET.fromstring(svg).iter("path") if p.get("class") == "guide"]
    (((left, _), (right, _)),) = points(svg, "line")
    assert len(guide) == 1
    assert float(guide[0][1:].split()[0]) == pytest.approx((left + right) / 2, abs=0.1)
    assert "half" in texts(svg)
    assert "later" not in texts(svg)


def test_band_and_members_surround_the_mean():
    low, mean, high = [0.0, 1.0], [1.0, 2.0], [2.0, 3.0]
    series = Series("return", [0, 1], mean, low, high, members=[[0.5, 1.5], [1.5, 2.5]])
    svg = line_chart([series], "Return", "steps", "return")
    ((hi0, hi1, lo1, lo0),) = points(svg, "band")
    (line,) = points(svg, "line")
    for top, middle, bottom in ((hi0, line[0], lo0), (hi1, line[1], lo1)):
        assert top[0] == middle[0] == bottom[0]
        assert top[1] < middle[1] < bottom[1]
    assert len(points(svg, "member")) == 2
    alone = line_chart([Series("return", [0, 1], mean, members=[mean])], "Return", "steps", "return")
    assert not points(alone, "member")  # one member is the mean itself


def test_a_huge_interval_does_not_flatten_the_lines():
    series = Series("return", [0, 1], [0.0, 1.0], [-1e6, -1e6], [1e6, 1e6])
    (((_, a), (_, b)),) = points(line_chart([series], "Return", "steps", "return"), "line")
    assert a - b > 40  # of 176


def test_missing_values_are_left_out_and_none_is_no_failure():
    svg = line_chart([Series("a", [0, 1, 2], [1.0, NAN, 2.0]), Series("b", [0, 1], [NAN, NAN])], "T", "x", "y")
    assert [len(p) for p in points(svg, "line")] == [2]
    empty = line_chart([Series("a", [], [])], "T", "x", "y"), stacked_chart([], [], "T", "x"), bar_chart([], "T", "x")
    for chart in empty:
        assert "no values yet" in texts(chart)
    assert points(line_chart([Series("a", [5], [1.0])], "T", "x", "y"), "line") == [[(60.0, pytest.approx(128, abs=3))]]


def test_long_series_are_thinned_by_picking_and_keep_their_last_point():
    n = 5000
    svg = line_chart([Series("a", range(n), [float(i % 7) for i in range(n)])], "T", "x", "y")
    (line,) = points(svg, "line")
    assert 200 <= len(line) <= charts._MOST_POINTS
    assert f"a: {number((n - 1) % 7)} at {number(n - 1)}" in (ET.fromstring(svg).get("aria-label") or "")
    assert 60 <= svg.count('class="hit"') <= charts._MOST_TIPS


def test_the_values_show_under_the_pointer():
    series = [Series("a", [0, 1000], [1.25, 2.5], [1.0, 2.0], [1.5, 3.0]), Series("b", [1000], [7.0])]
    svg = line_chart(series, "T", "x", "y")
    tips = [
        ["".join(t.itertext()) for t in g.iter("text")] for g in ET.fromstring(svg).iter("g") if g.get("class") == "tip"
    ]
    assert tips == [["0", "a 1.25 (1 to 1.5)"], ["1000", "a 2.5 (2 to 3)", "b 7"]]


def test_shares_stack_to_the_top():
    svg = stacked_chart([10, 20], [("act", [30.0, 50.0]), ("update", [70.0, 50.0])], "Time", "steps")
    areas = [p.get("d") for p in ET.fromstring(svg).iter("path") if "fill:" in (p.get("style") or "")]
    numbers = [[float(n) for n in re.findall(r"-?[\d.]+", d or "")] for d in areas]
    bottom, top = numbers[0][-1], numbers[1][1]
    assert numbers[0][1] == numbers[1][-1]  # where act ends, update begins
    assert (bottom - numbers[0][1]) / (bottom - top) == pytest.approx(0.3, abs=1e-3)


def test_bars_and_whiskers_have_their_lengths():
    svg = bar_chart([Bar("a", 50.0, 40.0, 60.0), Bar("b", 100.0)], "Mean", "ticks", limit=100.0)
    a, b = (r for r in ET.fromstring(svg).iter("rect"))
    assert float(a.get("width", 0)) / float(b.get("width", 1)) == pytest.approx(0.5, abs=2e-3)
    whiskers = [p.get("d") or "" for p in ET.fromstring(svg).iter("path") if "var(--ink)" in (p.get("style") or "")]
    (start, _, end, *_) = [float(n) for n in re.findall(r"[\d.]+", whiskers[0])]
    assert (end - start) / float(b.get("width", 1)) == pytest.approx(0.2, abs=2e-3)


def test_any_text_is_escaped():
    series = Series(EVIL, [0, 1], [1.0, 2.0])
    pictures = [
        line_chart([series, series], EVIL, EVIL, EVIL, guides=[(EVIL, 1.5, 0)]),
        stacked_chart([0, 1], [(EVIL, [50.0, 50.0])], EVIL, EVIL),
        bar_chart([Bar(EVIL, 1.0)], EVIL, EVIL),
        line_chart([], EVIL, EVIL, EVIL),
    ]
    for svg in pictures:
        assert "<script" not in svg
        assert any("<script>" in t for t in texts(svg))  # a reader still sees it


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1234"), (12345, "12.35k"), (2.5e6, "2.5M"), (3e9, "3G"), (-0.00012, "-0.00012"), (NAN, "-")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (0, 14e6), (-3.7, 12.2), (1e-7, 3e-7), (5, 5)):
        ticks = charts._ticks(low, high, 5)
        assert 1 <= len(ticks) <= 7
        assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert charts._ticks(0, 14e6, 6) == [0, 2.5e6, 5e6, 7.5e6, 10e6, 12.5e6]
    assert not math.isnan(sum(charts._ticks(0, 1, 5)))
