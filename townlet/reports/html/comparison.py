"""A comparison of runs on one page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..._build import __version__
from ...runs.metrics import Curve
from ...runs.results import Results
from ...support.files import replacing
from ...support.text import interval
from ..compare import Comparison, Difference, Score
from . import page
from .charts import Bar, bar_chart, line_chart
from .run import series, setting_text


def write_comparison(found: Comparison, path: str | Path) -> None:
    """Write the page.

    Args:
        found: the comparison.
        path: the file to write.

    Raises:
        OSError: the file cannot be written. The message names it.
    """
    with replacing(path, durable=False) as file:
        file.write(render(found))


def render(found: Comparison) -> str:
    """The page as HTML."""
    unit = "ticks" if found.score_name == "survival" else "return"
    curves = found.curves()
    lines = [series(name, curve, i % 8) for i, (name, curve) in enumerate(zip(found.names, curves, strict=True))]
    timed = [replace(line, x=_seconds(run, curve)) for line, run, curve in zip(lines, found.runs, curves, strict=True)]
    title = f"{found.score_name.capitalize()} of an episode"
    bars = [Bar(n, s.mean, *_ends(s), i % 8) for i, (n, s) in enumerate(zip(found.names, found.scores, strict=True))]
    against = [
        page.card(line_chart(lines, title, "environment steps per member", unit, width=1140, height=400), wide=True),
        page.card(line_chart(timed, f"{title} over time", "seconds of wall clock", unit)),
        page.card(bar_chart(bars, f"Score: {found.source}", f"mean {found.score_name}")),
    ]
    text = "Members are drawn faint, means strong; bands are the means' 95% intervals over members (Student's t)."
    blocks = [
        page.section("Scores", f"Higher is better. From each run's {found.source}.", page.card(_table(found))),
        page.section("Differences", "Welch's 95% interval over members.", page.card(_differences(found.differences))),
        page.section("Read with care", "What the intervals do not say.", page.listing(found.notes)),
        page.section("Curves", text, page.grid(*against)),
        page.section("Settings that differ", "All others are the same.", page.card(_settings(found))),
    ]
    return page.page(", ".join(found.names), "Runs compared.", blocks, footer=f"Written by Townlet {__version__}.")


def _table(found: Comparison) -> str:
    columns, lines = found.table()
    return page.table(columns, lines, "")


def _differences(differences: list[Difference]) -> str:
    lines = [[f"{d.run} minus {d.against}", f"{d.mean:+.4g}", interval(d.low, d.high), d.verdict] for d in differences]
    return page.table(["difference", "mean", "95% interval", "verdict"], lines, "", numbers=False) if lines else ""


def _settings(found: Comparison) -> str:
    lines = [[name, *map(setting_text, values)] for name, values in found.settings.items()]
    return page.table(["setting", *found.names], lines, "", numbers=False) if lines else ""


def _seconds(run: Results, curve: Curve) -> list[float]:
    """The wall-clock seconds at each point of a curve."""
    clock = run.curve("seconds")
    at = dict(zip(clock.x.tolist(), clock.mean.tolist(), strict=True))
    return [at.get(step, float("nan")) for step in curve.x.tolist()]


def _ends(score: Score) -> tuple[float | None, float | None]:
    return (score.low, score.high) if score.low == score.low else (None, None)
