"""Charts as inline SVG: text that a browser draws, with the colours of the page it stands in.

    from townlet.reports.html.charts import STYLE, Series, line_chart

    x = [0, 1000, 2000]
    svg = line_chart([Series("return", x, mean=[1, 3, 4], low=[0, 2, 3], high=[2, 4, 5])], "Return", "steps", "return")
    page = f"<style>{STYLE}</style>{svg}"

Every chart is a string ``<svg ...>`` with a label that says in words what it shows. Values appear while the pointer is
over them, by CSS alone. All text is escaped here. Colours are CSS variables, which `STYLE` sets for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ...support.text import interval, number

Values = Sequence[float] | np.ndarray
_WIDTH, _LEFT, _RIGHT = 560, 60, 14
_MOST_POINTS = 400  # points drawn per line; the others are left out evenly, never averaged
_MOST_TIPS = 120  # places of a chart that show their values

# Okabe & Ito's palette, which people with any colour vision can tell apart, and the same hues for a dark ground.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5548f", "#c98a00", "#3f9ad0", "#7c6a55", "#8a8a8a")
_DARK = ("#58aeea", "#f0894a", "#33c39a", "#e08fc0", "#e9b43e", "#8fd0f7", "#b8a58c", "#a3a3a3")


def _colours(values: Sequence[str]) -> str:
    return "".join(f"--c{i}:{value};" for i, value in enumerate(values))


STYLE = (
    ":root{--ink:#1c2127;--soft:#5d6874;--rule:#e3e6ea;--card:#fff;--tip:#1c2127;--tip-ink:#fff;"
    + _colours(_LIGHT)
    + "}@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#98a2ad;--rule:#2f363e;--card:#1a1f25;"
    "--tip:#e4e7eb;--tip-ink:#14181d;" + _colours(_DARK) + "}}"
    "svg.chart{display:block;width:100%;height:auto;font:11px system-ui,sans-serif;fill:var(--soft);"
    "font-variant-numeric:tabular-nums}"
    ".chart .title{font-size:13px;font-weight:600;fill:var(--ink)}"
    ".chart .name{fill:var(--ink)}"
    ".chart .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}"
    ".chart .grid{stroke:var(--rule);stroke-width:1;fill:none}"
    ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .member{fill:none;stroke-width:1;opacity:.32;stroke-linejoin:round}"
    ".chart .band{stroke:none;opacity:.17}"
    ".chart .guide{fill:none;stroke-width:1.2;stroke-dasharray:2 4;stroke-linecap:round}"
    ".chart .hit>rect:first-child{fill:transparent}"
    ".chart .tip{opacity:0;pointer-events:none}.chart .hit:hover .tip{opacity:1}"
    ".chart .tip rect{fill:var(--tip);opacity:.94}.chart .tip text{fill:var(--tip-ink)}"
    ".chart .tip line{stroke:var(--soft);stroke-width:1}"
    "@media(prefers-reduced-motion:no-preference){.chart .tip{transition:opacity .08s}}"
)
"""The CSS of all charts of a page. The page may use its variables too (--ink, --soft, --rule, --card, --c0 to --c7)."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: a mean, an interval around it, and the members behind it. NaN leaves a point out.

    Attributes:
        name: the name in the legend.
        x: where the points are; all other values belong to the same places.
        mean: the values of the line.
        low: the lower ends of the interval; None for no interval.
        high: the upper ends of the interval; None for no interval.
        members: the values of each member.
        colour: the number of one of the eight colours; None takes the series' place in the chart.
    """

    name: str
    x: Values
    mean: Values
    low: Values | None = None
    high: Values | None = None
    members: Sequence[Values] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Bar:
    """One bar of a bar chart.

    Attributes:
        name: what the bar shows.
        value: its length.
        low: the lower end of its interval; None for no interval.
        high: the upper end of its interval; None for no interval.
        colour: the number of one of the eight colours.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    zero: bool = False,
    guides: Sequence[tuple[str, float, int]] = (),
    events: Sequence[tuple[str, float]] = (),
    width: int = 560,
    height: int = 260,
) -> str:
    """Lines with bands and faint members, as SVG.

    Args:
        series: the lines to draw. A line without a finite point is left out.
        title: the heading.
        x_label: what x is.
        y_label: what y is.
        log: whether the y axis is logarithmic, which leaves out values that are not positive.
        zero: whether the y axis includes 0.
        guides: dotted horizontal lines, as (name, value, colour).
        events: vertical lines, as (name, x). Those outside the drawn range are left out.
        width: the width of the picture, in units that are pixels where it is shown at this width.
        height: its height, in the same units.
    """
    series = [_thinned(s, i, log) for i, s in enumerate(series)]
    series = [s for s in series if len(s.x)]
    if not series:
        return _nothing(title, height, width)
    rows = _legend_rows([(s.name, s.colour or 0) for s in series] if len(series) > 1 else [], width)
    frame = _Frame(_LEFT, 40 + 16 * len(rows), width - _LEFT - _RIGHT, height - 84 - 16 * len(rows))
    xs = [x for s in series for x in s.x]
    tight = [v for s in series for line in (s.mean, *s.members) for v in line if math.isfinite(v)]
    tight += [value for _, value, _ in guides]
    y = _Axis.over(_with_bands(tight, series, log), frame.bottom, frame.top, log=log, zero=zero and not log)
    x = _Axis(min(xs), max(xs), frame.left, frame.right, _ticks(min(xs), max(xs), 6))
    parts = [_heading(title), *rows, *_grid(x, y, frame, x_label, y_label)]
    for name, step in events:
        if x.low < step < x.high:
            line = f"M{x(step):.1f} {frame.top}V{frame.bottom}"
            parts.append(f'<path class="guide" style="stroke:var(--soft)" d="{line}"/>')
            parts.append(_text(x(step) + 4, frame.top + 10, name, cls="halo"))
    for s in series:
        parts += _drawn(s, x, y)
    for name, value, colour in guides:
        at = f"{y(value):.1f}"
        parts.append(f'<path class="guide" style="stroke:var(--c{colour})" d="M{frame.left} {at}H{frame.right}"/>')
        text = f"{name} {number(value)}"
        parts.append(
            _text(frame.right - 3, y(value) - 4, text, anchor="end", cls="halo", style=f"fill:var(--c{colour})")
        )
    parts += _line_tips(series, x, y, frame)
    last = "; ".join(f"{s.name}: {number(s.mean[-1])} at {number(s.x[-1])}" for s in series)
    return _svg(title, f"{y_label} against {x_label}. Last values: {last}.", parts, height, width)


def stacked_chart(
    x_values: Values, parts: Sequence[tuple[str, Values]], title: str, x_label: str, *, height: int = 260
) -> str:
    """Shares that add up to 100%, stacked from the bottom up, as SVG.

    Args:
        x_values: where the shares were measured.
        parts: the name of each part, and its share in percent at each x.
        title: the heading.
        x_label: what x is.
        height: the height of the picture.
    """
    if not len(x_values):
        return _nothing(title, height)
    rows = _legend_rows([(name, i) for i, (name, _) in enumerate(parts)], _WIDTH)
    frame = _Frame(_LEFT, 40 + 16 * len(rows), _WIDTH - _LEFT - _RIGHT, height - 84 - 16 * len(rows))
    every = max(1, math.ceil(len(x_values) / _MOST_TIPS))
    kept = list(range(len(x_values) - 1, -1, -every))[::-1]
    xs = [x_values[i] for i in kept]
    first = 0.0 if len(xs) == 1 else xs[0]  # a single interval fills the picture
    x = _Axis(first, xs[-1], frame.left, frame.right, _ticks(first, xs[-1], 6))
    y = _Axis(0.0, 100.0, frame.bottom, frame.top, [0, 25, 50, 75, 100])
    out = [_heading(title), *rows, *_grid(x, y, frame, x_label, "% of the time")]
    below = [0.0] * len(xs)
    for i, (_, values) in enumerate(parts):
        above = [b + values[k] for b, k in zip(below, kept, strict=True)]
        edge = [(x(first), y(above[0]))] if len(xs) == 1 else []
        foot = [(x(first), y(below[0]))] if len(xs) == 1 else []
        up = edge + [(x(a), y(b)) for a, b in zip(xs, above, strict=True)]
        down = foot + [(x(a), y(b)) for a, b in zip(xs, below, strict=True)]
        out.append(f'<path style="fill:var(--c{i});opacity:.82" d="{_path(up + down[::-1])}Z"/>')
        below = above
    lines = [[f"{name} {parts[j][1][k]:.1f}%" for j, (name, _) in enumerate(parts)][::-1] for k in kept]
    out += _tips(xs, lines, x, frame)
    last = ", ".join(f"{name} {values[-1]:.0f}%" for name, values in parts)
    return _svg(title, f"Shares of the time against {x_label}. Last: {last}.", out, height)


def bar_chart(bars: Sequence[Bar], title: str, x_label: str, *, limit: float | None = None) -> str:
    """Horizontal bars from 0 with their intervals, as SVG.

    Args:
        bars: the bars, from top to bottom. A bar whose value is not finite is left out.
        title: the heading.
        x_label: what the values are.
        limit: the largest possible value, at which a dotted line is drawn; None for no line.
    """
    bars = [b for b in bars if math.isfinite(b.value)]
    if not bars:
        return _nothing(title, 120)
    left, row = min(210, 20 + max(_text_width(b.name) for b in bars)), 26
    frame = _Frame(left, 38, _WIDTH - left - 46, row * len(bars))
    ends = [v for b in bars for v in (b.value, b.low, b.high, limit) if v is not None and math.isfinite(v)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    x = _Axis(low, high if high > low else low + 1.0, frame.left, frame.right, _ticks(low, high, 5))
    parts = [_heading(title)]
    for tick in x.ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {frame.top}V{frame.bottom}"/>')
        parts.append(_text(x(tick), frame.bottom + 15, number(tick), anchor="middle"))
    parts.append(_text((frame.left + frame.right) / 2, frame.bottom + 31, x_label, anchor="middle"))
    for i, b in enumerate(bars):
        middle = frame.top + row * (i + 0.5)
        start, end = sorted((x(0.0), x(b.value)))
        parts.append(_text(left - 8, middle + 4, b.name, anchor="end", cls="name"))
        parts.append(
            f'<rect x="{start:.1f}" y="{middle - 8:.1f}" width="{end - start:.1f}" height="16" rx="2" '
            f'style="fill:var(--c{b.colour});opacity:.8"/>'
        )
        edge = end
        if b.low is not None and b.high is not None:
            a, z = x(b.low), x(b.high)
            edge = max(edge, z)
            whiskers = f"M{a:.1f} {middle:.1f}H{z:.1f}M{a:.1f} {middle - 4:.1f}v8M{z:.1f} {middle - 4:.1f}v8"
            parts.append(f'<path style="stroke:var(--ink);stroke-width:1.4;fill:none" d="{whiskers}"/>')
        parts.append(_text(edge + 6, middle + 4, number(b.value), cls="name", style="font-weight:600"))
    if limit is not None:
        parts.append(f'<path class="guide" style="stroke:var(--soft)" d="M{x(limit):.1f} {frame.top}V{frame.bottom}"/>')
    text = "; ".join(f"{b.name}: {number(b.value)}{_interval(b.low, b.high)}" for b in bars)
    return _svg(title, f"{x_label}. {text}.", parts, frame.bottom + 40)


def lineage_chart(copies: Sequence[tuple[float, int, int]], members: int, end: float, x_label: str) -> str:
    """Who copied whom, as SVG: a line for each member, and for each copy a line from the parent to the member.

    Args:
        copies: each copy as (step, member, parent).
        members: the number of members.
        end: the step at which the members' lines end.
        x_label: what x is.
    """
    row, title = 22, "Who copied whom"
    frame = _Frame(78, 38, _WIDTH - 78 - _RIGHT, row * members)
    x = _Axis(0.0, end or 1.0, frame.left, frame.right, _ticks(0.0, end or 1.0, 5))
    parts = [_heading(title)]
    for tick in x.ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {frame.top}V{frame.bottom}"/>')
        parts.append(_text(x(tick), frame.bottom + 17, number(tick), anchor="middle"))
    parts.append(_text((frame.left + frame.right) / 2, frame.bottom + 35, x_label, anchor="middle"))
    middle = [frame.top + row * (p + 0.5) for p in range(members)]
    for p, y in enumerate(middle):
        parts.append(_text(frame.left - 8, y + 4, f"member {p}", anchor="end", cls="name"))
        parts.append(f'<path class="line" style="stroke:var(--c{p % 8})" d="M{frame.left} {y}H{frame.right}"/>')
    for step, member, parent in copies:
        at, style = f"{x(step):.1f}", f"stroke:var(--c{parent % 8})"
        parts.append(f'<path class="line" style="{style}" d="M{at} {middle[parent]}V{middle[member]}"/>')
        parts.append(
            f'<circle cx="{at}" cy="{middle[member]}" r="4.5" style="fill:var(--card);stroke-width:2;{style}"/>'
        )
    text = "; ".join(f"at step {number(s)} member {m} became a copy of member {p}" for s, m, p in copies)
    return _svg(title, f"{text}.", parts, frame.bottom + 44)


# ---- parts of a chart -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """The area of the plot in the picture."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


@dataclass(frozen=True)
class _Axis:
    """Maps [low, high] to [start, end] of the picture. A value outside is drawn on the edge."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool, zero: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            low, high = low / 1.15, high * 1.15
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [m * 10.0**d for d in decades for m in ((1,) if high > 100 * low else (1, 2, 5))]
            inside = [t for t in ticks if low <= t <= high]
            few = [t for t in _ticks(low, high, 4) if t > 0.0]  # used where fewer than two ticks would show
            return cls(low, high, start, end, inside if len(inside) > 1 else few, log=True)
        low, high = (min(0.0, low), max(0.0, high)) if zero else (low, high)
        room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        below = 0.0 if zero and low >= 0.0 else room
        low, high = low - below, high + room
        return cls(low, high, start, end, _ticks(low, high, 5))

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        part = ((math.log(value) if self.log else value) - low) / ((high - low) or 1.0)
        return self.start + part * (self.end - self.start)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers in [low, high]."""
    span = high - low
    if not span > 0.0:
        return [low]
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(s: Series, place: int, log: bool) -> Series:
    """The series with at most `_MOST_POINTS` points, all with a mean. The last point is kept."""

    def good(value: float) -> bool:
        return math.isfinite(value) and (value > 0.0 or not log)

    kept = [i for i, value in enumerate(s.mean) if good(value)]
    every = max(1, math.ceil(len(kept) / _MOST_POINTS))
    kept = kept[::-1][::every][::-1]

    def take(values: Values) -> list[float]:
        return [values[i] if good(values[i]) else math.nan for i in kept]

    low, high = (None, None) if s.low is None or s.high is None else (take(s.low), take(s.high))
    colour = place % 8 if s.colour is None else s.colour
    return Series(s.name, [s.x[i] for i in kept], take(s.mean), low, high, [take(m) for m in s.members], colour)


def _with_bands(tight: list[float], series: Sequence[Series], log: bool) -> list[float]:
    """The y values that the axis has to hold: all lines, and as much of the bands as does not flatten the lines."""
    low, high = min(tight), max(tight)
    room = 0.5 * (high - low)
    least, most = (low / 3, high * 3) if log else (low - room, high + room)
    bands = [v for s in series for line in (s.low, s.high) if line is not None for v in line if math.isfinite(v)]
    return [*tight, *(min(max(v, least), most) for v in bands)]


def _drawn(s: Series, x: _Axis, y: _Axis) -> Iterable[str]:
    colour = f"var(--c{s.colour})"

    def points(values: Values) -> list[tuple[float, float]]:
        return [(x(a), y(b)) for a, b in zip(s.x, values, strict=True) if math.isfinite(b)]

    if s.low is not None and s.high is not None:
        both = [(a, lo, hi) for a, lo, hi in zip(s.x, s.low, s.high, strict=True) if math.isfinite(lo + hi)]
        if len(both) > 1:
            edge = [(x(a), y(hi)) for a, _, hi in both] + [(x(a), y(lo)) for a, lo, _ in both[::-1]]
            yield f'<path class="band" style="fill:{colour}" d="{_path(edge)}Z"/>'
        elif both:
            a, lo, hi = both[0]
            yield f'<path style="stroke:{colour};stroke-width:1.4" d="M{x(a):.1f} {y(lo):.1f}V{y(hi):.1f}"/>'
    for member in s.members if len(s.members) > 1 else ():
        yield f'<path class="member" style="stroke:{colour}" d="{_path(points(member))}"/>'
    mean = points(s.mean)
    yield f'<path class="line" style="stroke:{colour}" d="{_path(mean)}"/>'
    if len(mean) <= 30:
        yield f'<g style="fill:{colour}">' + "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in mean)
        yield "</g>"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) if points else ""


def _grid(x: _Axis, y: _Axis, frame: _Frame, x_label: str, y_label: str) -> Iterable[str]:
    for tick in y.ticks:
        yield f'<path class="grid" d="M{frame.left:g} {y(tick):.1f}H{frame.right:g}"/>'
        yield _text(frame.left - 7, y(tick) + 4, number(tick), anchor="end")
    for tick in x.ticks:
        yield _text(x(tick), frame.bottom + 17, number(tick), anchor="middle")
    yield _text((frame.left + frame.right) / 2, frame.bottom + 35, x_label, anchor="middle")
    middle = (frame.top + frame.bottom) / 2
    yield _text(13, middle, y_label, anchor="middle", transform=f"rotate(-90 13 {middle:g})")


def _line_tips(series: Sequence[Series], x: _Axis, y: _Axis, frame: _Frame) -> Iterable[str]:
    found: dict[float, list[str]] = {}
    for s in series:
        for i, at in enumerate(s.x):
            interval = "" if s.low is None or s.high is None else _interval(s.low[i], s.high[i])
            name = f"{s.name} " if len(series) > 1 else ""
            found.setdefault(at, []).append(f"{name}{number(s.mean[i])}{interval}")
    xs = sorted(found)
    kept = xs[::-1][:: max(1, math.ceil(len(xs) / _MOST_TIPS))][::-1]
    return _tips(kept, [found[a] for a in kept], x, frame)


def _tips(xs: Values, lines: Sequence[Sequence[str]], x: _Axis, frame: _Frame) -> Iterable[str]:
    """For each x a strip that shows the values there while the pointer is over it."""
    for i, at in enumerate(xs):
        left = frame.left if i == 0 else (x(xs[i - 1]) + x(at)) / 2
        right = frame.right if i == len(xs) - 1 else (x(at) + x(xs[i + 1])) / 2
        texts = [number(at), *lines[i]]
        width = 16 + max(map(_text_width, texts))
        box = x(at) + 8 if x(at) + 8 + width < frame.right else x(at) - 8 - width
        tip = f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{frame.top:g}" y2="{frame.bottom:g}"/>'
        tip += f'<rect x="{box:.1f}" y="{frame.top:g}" width="{width:.0f}" height="{15 * len(texts) + 8}" rx="4"/>'
        tip += "".join(_text(box + 8, frame.top + 15 * (n + 1), text) for n, text in enumerate(texts))
        strip = f'x="{left:.1f}" y="{frame.top:g}" width="{right - left:.1f}" height="{frame.height:g}"'
        yield f'<g class="hit"><rect {strip}/><g class="tip">{tip}</g></g>'


def _legend_rows(names: Sequence[tuple[str, int]], room: float) -> list[str]:
    """A swatch and a name for each (name, colour), in as many rows as are needed."""
    row, at = 0, float(_LEFT)
    rows: list[list[str]] = [[]] if names else []
    for name, colour in names:
        width = 34 + _text_width(name)
        if at + width > room and at > _LEFT:
            row, at = row + 1, float(_LEFT)
            rows.append([])
        top = 40 + 16 * row
        rows[row].append(
            f'<rect x="{at:g}" y="{top - 8}" width="14" height="8" rx="2" style="fill:var(--c{colour})"/>'
            + _text(at + 19, top, name, cls="name")
        )
        at += width
    return ["".join(r) for r in rows]


def _heading(title: str) -> str:
    return _text(14, 19, title, cls="title")


def _text(x: float, y: float, text: str, *, anchor: str = "", cls: str = "", **attributes: str) -> str:
    given: dict[str, str] = {"class": cls, "text-anchor": anchor, **attributes}
    written = "".join(f' {k}="{escape(v)}"' for k, v in given.items() if v)
    return f'<text x="{x:.4g}" y="{y:.4g}"{written}>{escape(text)}</text>'


def _text_width(text: str) -> float:
    return 6.1 * len(text)


def _interval(low: float | None, high: float | None) -> str:
    ends = interval(low, high, "")
    return f" ({ends})" if ends else ""


def _nothing(title: str, height: float, width: float = _WIDTH) -> str:
    text = _text(width / 2, height / 2, "no values yet", anchor="middle")
    return _svg(title, "No values yet.", [_heading(title), text], height, width)


def _svg(title: str, description: str, parts: Iterable[str], height: float, width: float = _WIDTH) -> str:
    label = escape(f"{title}. {description}")
    box = f"0 0 {width:g} {height:g}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
