"""Pictures of a run: how long each policy survives, and how the training went. Drawn without a display (Agg)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from .records import read_metrics

if TYPE_CHECKING:
    from .report import Report

# Okabe & Ito's palette, told apart by people with any colour vision.
_COLOURS = {
    "random": "#999999",
    "bed-sitter": "#E69F00",
    "trained, state zeroed each step": "#56B4E9",
    "trained": "#0072B2",
    "trained without memory": "#D55E00",
    "scripted (sees everything)": "#009E73",
}


def survival(report: Report, path: str | Path) -> None:
    """survival.png: left, mean survival of each policy with its 95% interval; right, the share alive at each tick."""
    rows = [r for r in report.rows if not r.name.startswith(" ")]
    cap = report.cap or max(float(r.scores.max()) for r in rows)
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
    """learning.png: the score of training episodes and of greedy evaluations, loss and epsilon, against steps."""
    rows = read_metrics(metrics)
    figure, (score, loss) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    has_survival = any(np.isfinite(r["eval_survival"]) or np.isfinite(r["train_survival"]) for r in rows)
    name = "survival" if has_survival else "return"
    members = sorted({int(r["member"]) for r in rows})
    for p in members:
        mine = [r for r in rows if r["member"] == p]
        first = p == members[0]
        _line(score, mine, f"train_{name}", "#999999", 1.2, "training episodes (exploring)" if first else None)
        _line(score, mine, f"eval_{name}", "#0072B2", 2.0, "greedy evaluation" if first else None, marker="o")
        _line(loss, mine, "loss", "#D55E00", 1.2, "loss" if first else None)
    score.set_ylabel("survival (ticks)" if has_survival else "return")
    score.set_title(
        "Learning curve" + (f", one line per member ({len(members)})" if len(members) > 1 else ""), fontsize=10
    )
    if score.lines:
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


def _line(
    axes: Any, rows: list[dict[str, float]], column: str, colour: str, width: float, label: str | None, **style: Any
) -> None:
    points = [(r["step"], r[column]) for r in rows if np.isfinite(r[column])]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linewidth=width, label=label, markersize=4, **style)


def _save(figure: Any, path: str | Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
