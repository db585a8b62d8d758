"""Pictures of a run: how long each policy survives, and how the training went. They need no display (Agg)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from ..runs.metrics import read_metrics
from ..support.files import replacing
from ..support.intervals import mean_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..evaluation.memory import MemoryProbe
    from ..evaluation.table import Report
    from ..runs.metrics import Curve

# Okabe & Ito's palette, which people with any colour vision can tell apart.
_COLOURS = {
    "random": "#999999",
    "bed-sitter": "#E69F00",
    "trained, state zeroed each step": "#56B4E9",
    "trained": "#0072B2",
    "trained without memory": "#D55E00",
    "scripted (sees everything)": "#009E73",
}
_ORDER = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def survival(table: Report, path: str | Path) -> None:
    """Draw survival.png: the mean survival of each policy with its 95% interval, and the share alive at each tick.

    Args:
        table: the policies' scores.
        path: the file to write.
    """
    rows = [r for r in table.rows if not r.name.startswith(" ")]
    cap = table.cap or max(float(r.scores.max()) for r in rows)
    figure, (means, curves) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1.15, 1), layout="constrained")
    for y, row in enumerate(rows):
        colour = _COLOURS.get(row.name, "#444444")
        mean, half = row.interval
        means.barh(y, mean, height=0.62, color=colour, alpha=0.85)
        if np.isfinite(half):
            means.errorbar(mean, y, xerr=half, color="black", capsize=4, linewidth=1.4)
        edge = mean + (half if np.isfinite(half) else 0.0)
        means.text(edge + 0.015 * cap, y, f"{mean:.0f}", va="center", fontweight="bold")
        ticks = np.arange(0, int(cap) + 1)
        alive = 1.0 - np.searchsorted(np.sort(row.scores.ravel()), ticks, side="left") / row.scores.size
        curves.step(ticks, 100 * alive, where="post", color=colour, linewidth=2, label=row.name)
    members = next((r.scores.shape[0] for r in rows if r.of_members), 1)
    episodes = rows[0].scores.size
    means.set_yticks(range(len(rows)), [_wrapped(r.name) for r in rows])
    means.invert_yaxis()
    means.set_xlim(0, 1.12 * cap)
    means.set_xlabel("mean survival (ticks)")
    over = f"trained: over {members} seeds; others: over episodes" if members > 1 else "over episodes"
    means.set_title(f"Mean over {episodes} unseen towns, 95% interval\n({over})", fontsize=10)
    means.axvline(cap, color="black", linestyle=":", linewidth=1)
    means.text(cap, -0.5, "cap ", ha="right", va="bottom", fontsize=8)
    curves.set_xlim(0, cap)
    curves.set_ylim(0, 102)
    curves.set_xlabel("tick")
    curves.set_ylabel("episodes still alive (%)")
    curves.set_title("Share still alive in the same episodes\n(colours as on the left)", fontsize=10)
    for axes in (means, curves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="x" if axes is means else "both")
        axes.set_axisbelow(True)
    _save(figure, path)


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n").replace(" (", "\n(")


def learning_curve(metrics: str | Path, path: str | Path) -> None:
    """Draw learning.png: the scores of training episodes and greedy evaluations, the loss and epsilon, by step.

    Args:
        metrics: the run's metrics.csv.
        path: the file to write.
    """
    rows = read_metrics(metrics)
    figure, (score, loss) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    has_survival = any(np.isfinite(r["eval_survival"]) or np.isfinite(r["train_survival"]) for r in rows)
    name = "survival" if has_survival else "return"
    members = sorted({int(r["member"]) for r in rows})
    alone = len(members) == 1
    lines = [
        (score, f"train_{name}", "#999999", 1.2, "training episodes (exploring)"),
        (score, f"eval_{name}", "#0072B2", 2.0, "greedy evaluation"),
        (loss, "loss", "#D55E00", 1.2, "loss"),
    ]
    for axes, column, colour, width, label in lines:
        for p in members:
            mine = [r for r in rows if r["member"] == p]
            style = {"marker": "o" if column.startswith("eval") else None} if alone else {"alpha": 0.3}
            _line(axes, mine, column, colour, width if alone else 0.8, label if alone else None, **style)
        if not alone:
            _mean_line(axes, rows, column, colour, width, label)
    score.set_ylabel("survival (ticks)" if has_survival else "return")
    over = "" if alone else f": mean of {len(members)} members with its 95% interval"
    score.set_title("Learning curve" + over, fontsize=10)
    if score.get_legend_handles_labels()[0]:
        score.legend(fontsize=8)
    epsilon = loss.twinx()
    _line(epsilon, [r for r in rows if r["member"] == 0], "epsilon", "#009E73", 1.2, None)
    epsilon.set_ylim(0, 1)
    epsilon.set_ylabel("epsilon", color="#009E73")
    loss.set_ylabel("loss", color="#D55E00")
    if any(r["loss"] > 0 for r in rows):
        loss.set_yscale("log")
    loss.set_xlabel("environment steps per member")
    loss.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (score, loss):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    _save(figure, path)


def memory_use(probe: MemoryProbe, path: str | Path) -> None:
    """Draw memory.png: the score with the state cleared or swapped every k steps, and how far back Q looks.

    Args:
        probe: what was measured.
        path: the file to write.
    """
    figure, (scores, lags) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(1.25, 1), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(probe.sentence, 150)), fontsize=10, x=0.01, ha="left")
    mean, never = float(probe.intact.mean()), len(probe.cleared)
    scores.axhline(mean, color="#0072B2", linewidth=2)
    style: dict[str, Any] = {"textcoords": "offset points", "color": "#0072B2", "fontsize": 9}
    scores.annotate("undisturbed", (never, mean), (0, 7), ha="center", **style)
    scores.axhline(float(probe.random.mean()), color="#999999", linestyle=":", linewidth=1.5, label="random actions")
    for at, name, every, colour, marker in (
        (-0.06, "state cleared", probe.cleared, "#D55E00", "o"),
        (0.06, "another episode's state", probe.swapped, "#009E73", "s"),
    ):
        costs = [probe.cost(s) for s in every.values()]
        half = np.nan_to_num([c.high - c.mean for c in costs])
        x = np.arange(never) + at
        scores.errorbar(x, [mean - c.mean for c in costs], half, color=colour, marker=marker, capsize=3, label=name)
    cost = probe.cost(probe.alike)
    half = np.nan_to_num(cost.high - cost.mean)
    name, style = "state of the episode most alike", {"color": "#CC79A7", "marker": "D", "linestyle": "", "capsize": 3}
    scores.errorbar([0.18], [mean - cost.mean], half, label=name, **style)
    scores.set_xticks([*range(never), never], [*map(str, probe.cleared), "never"])
    scores.plot(never, mean, "o", color="#0072B2")
    scores.set_xlabel("every k steps")
    scores.set_ylabel(f"mean {probe.score_name}")
    P, N = probe.intact.shape
    over = f"over {P} members" if P > 1 else "over episodes"
    scores.set_title(f"What its state is worth: {N} episodes{' per member' * (P > 1)}, the same everywhere\n"
                     f"(bars: 95% interval of the difference, {over})", fontsize=10)  # fmt: skip
    scores.legend(fontsize=8, loc="best")
    floor = 1e-4
    by_lag = probe.influence_by_lag
    shown = max((k for k, i in enumerate(by_lag) if i.mean >= floor), default=0)
    by_lag = by_lag[: max(shown + 1, 16)]
    k = np.arange(len(by_lag))
    lags.plot(k, [i.mean for i in by_lag], color="#0072B2", marker="o" if len(k) < 20 else None)
    lags.fill_between(k, [i.low for i in by_lag], [i.high for i in by_lag], color="#0072B2", alpha=0.2, linewidth=0)
    if any(i.mean > 0 for i in by_lag[1:]):
        lags.set_yscale("log")
        lags.set_ylim(floor, 2.0)
    lags.set_xlabel("k: steps ago")
    lags.set_ylabel("relative to the present one (k = 0)")
    lags.set_title("How much an observation k steps ago moves Q\n(norm of its gradient)", fontsize=10)
    for axes in (scores, lags):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    _save(figure, path)


def comparison(curves: Mapping[str, Curve], score: str, path: str | Path) -> None:
    """Draw the curves of several runs: their means with 95% intervals over members, and the members faintly.

    Args:
        curves: the runs' names and curves.
        score: "survival" or "return".
        path: the file to write.
    """
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        colour = _ORDER[i % len(_ORDER)]
        axes.plot(curve.x, curve.mean, color=colour, linewidth=2, label=name)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.17, linewidth=0)
        if curve.members.shape[1] > 1:
            axes.plot(curve.x, curve.members, color=colour, linewidth=0.8, alpha=0.35)
    axes.set_xlabel("environment steps per member")
    axes.set_ylabel("survival (ticks)" if score == "survival" else score)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title("Means, 95% intervals over members", fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    _save(figure, path)


def _line(
    axes: Any, rows: list[dict[str, float]], column: str, colour: str, width: float, label: str | None, **style: Any
) -> None:
    points = [(r["step"], r[column]) for r in rows if np.isfinite(r[column])]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linewidth=width, label=label, markersize=4, **style)


def _mean_line(axes: Any, rows: list[dict[str, float]], column: str, colour: str, width: float, label: str) -> None:
    """Draw the mean over members and its 95% interval, at the steps where several members have a value."""
    values: dict[float, list[float]] = {}
    for r in rows:
        if np.isfinite(r[column]):
            values.setdefault(r["step"], []).append(r[column])
    points = [(step, *mean_interval(np.array(v))) for step, v in values.items() if len(v) > 1]
    if points:
        x, mean, half = np.array(points).T
        axes.plot(x, mean, color=colour, linewidth=width, label=label)
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def _save(figure: Any, path: str | Path) -> None:
    try:
        with replacing(path, "wb", durable=False) as file:
            figure.savefig(file, dpi=130, format=Path(path).suffix[1:] or "png")
    finally:
        plt.close(figure)
