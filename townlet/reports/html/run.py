"""report.html: one run on one page, made from the files in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..._build import __version__
from ...runs.metrics import MEANINGS, Curve
from ...runs.results import Results
from ...settings.config import GROUPS, PER_MEMBER, Config
from ...support.files import replacing
from ...support.text import duration, interval, number
from . import page
from .charts import Bar, Series, bar_chart, line_chart, lineage_chart, stacked_chart

FILE = "report.html"
_X = "environment steps per member"
_PHASES = {"act_s": "acting", "env_s": "worlds", "replay_s": "storing", "update_s": "updates", "eval_s": "evaluation"}
_FACTS = ("command", "commit", "townlet", "machine", "threads", "isa in use", "torch", "python")  # shown at once
_POLICY_COLOURS = {
    "random": 7,
    "bed-sitter": 4,
    "trained, state zeroed each step": 5,
    "trained": 0,
    "trained without memory": 1,
    "scripted (sees everything)": 2,
}


def write_report(folder: str | Path) -> Path:
    """Write report.html into a run folder.

    Args:
        folder: the run folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``folder`` is no run folder.
        OSError: the page cannot be written. An earlier one stays.
    """
    path = Path(folder) / FILE
    text = render(Results.load(folder))
    with replacing(path, durable=False) as file:
        file.write(text)
    return path


def try_report(folder: Path, say: Callable[[str], None]) -> None:
    """Write report.html for a run that is training. A fault goes to ``say``, since no page may end a run."""
    try:
        write_report(folder)
    except Exception as error:
        say(f"{folder / FILE}: not written ({error})")


class LiveReport:
    """Writes report.html while a run goes on.

    A page takes longer to write the longer the run is. So the next one waits until the time spent on the last is no
    more than ``SHARE`` of the time since.

    Args:
        folder: the run folder.
        say: receives a line when a page could not be written.
    """

    SHARE = 0.01

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say, self._next = folder, say, 0.0

    def update(self) -> None:
        """Write the page if it is time to."""
        begun = time.monotonic()
        if begun >= self._next:
            try_report(self.folder, self.say)
            now = time.monotonic()
            self._next = begun + (now - begun) / self.SHARE


def render(run: Results) -> str:
    """The page as HTML."""
    blocks = [
        _figures(run),
        page.section("Learning", _learning_text(run), page.grid(*_learning(run))),
        page.section("Against the yardsticks", _yardsticks_text(run), page.grid(*_yardsticks(run))),
        page.section("Memory", "What the probe says (townlet memory).", *_memory(run)),
        page.section("Inside the learner", _inside_text(run), page.grid(*_inside(run))),
        page.section("Population based training", _lineage_text(run), page.grid(*_lineage(run))),
        page.section("Speed", _speed_text(run), page.grid(*_speed(run))),
        page.section(
            "Settings",
            "The settings that differ from the defaults. In the list of all settings they are marked.",
            page.card(_settings(run.config)),
        ),
        page.section("Where it ran", "One column for each start or resumption.", page.card(_sessions(run))),
        page.section("The last record", "As in metrics.csv.", page.card(_last_record(run))),
    ]
    title = f"{run.config.get('env', '?')}: {run.name}"
    members = f"{run.members} members" if run.members > 1 else "1 member"
    seed = run.config.get("seed", 0)
    return page.page(
        title, f"{members}, seed {seed}. {_state(run)}", blocks, footer=f"Written by Townlet {__version__}."
    )


def series(
    name: str, curve: Curve, colour: int | None = None, *, members: bool = True, interval: bool = True
) -> Series:
    """A curve of a run as a chart draws it.

    Args:
        name: the name in the legend.
        curve: the values.
        colour: the number of the colour; None takes the next.
        members: whether the members are drawn behind the mean.
        interval: whether the mean's interval is drawn.
    """
    behind = [curve.members[:, p] for p in range(curve.members.shape[1])] if members else []
    low, high = (curve.low, curve.high) if interval and np.isfinite(curve.low).any() else (None, None)
    return Series(name, curve.x, curve.mean, low, high, behind, colour)


# ---- head -----------------------------------------------------------------------------------------------------------


def _state(run: Results) -> str:
    total = run.config.get("total_steps")
    done = f"{run.env_steps:,} of {total:,} steps per member" if isinstance(total, int) else f"{run.env_steps:,} steps"
    if run.finished:
        return f"Finished after {run.env_steps:,} steps per member."
    if run.summary.get("stopped_by") and run.summary.get("env_steps") == run.env_steps:
        return f"Stopped by {run.summary['stopped_by']} after {done}."
    return f"As of {done}."


def _figures(run: Results) -> str:
    entries = []
    trained = run.policies.get("trained") or run.policies.get("trained without memory")
    if trained is not None and run.finished:
        detail = _interval(trained["low"], trained["high"])
        over = f"{run.members} members" if run.members > 1 else f"{trained['episodes']} episodes"
        entries.append((f"final {run.score}", number(trained["mean"]), f"{detail} over {over}" if detail else over))
    else:
        for what, column in (("greedy", f"eval_{run.score}"), ("training", f"train_{run.score}")):
            curve = run.curve(column)
            if len(curve):
                detail = f"at {number(curve.x[-1])} steps {_interval(curve.low[-1], curve.high[-1])}"
                entries.append((f"{what} {run.score}", number(curve.mean[-1]), detail))
                break
    updates = run.curve("updates")
    if len(updates):
        entries.append(("steps", number(run.env_steps), "per member"))
        entries.append(("updates", number(updates.mean[-1]), "of each member"))
        entries.append(("wall clock", duration(run.seconds), "without pauses"))
        entries.append(("speed", f"{number(run.steps_per_s)}/s", "environment steps, all members, evaluation included"))
    return page.figures(entries)


def _interval(low: float | None, high: float | None) -> str:
    ends = interval(low, high, "")
    return f"95% interval {ends}" if ends else ""


# ---- learning -------------------------------------------------------------------------------------------------------


def _learning_text(run: Results) -> str:
    if run.members > 1:
        text = "Members are drawn faint, their mean strong; the band is its 95% interval over members (Student's t)."
        copied = " Members were copied from each other, so they are not independent and the band is too narrow."
        return text + copied if run.lineage else text
    return "This is one member. Nothing here says how another seed would do (--members)."


def _learning(run: Results) -> Iterable[str]:
    unit = "ticks" if run.score == "survival" else "return"
    both = [
        series("training episodes (exploring)", run.curve(f"train_{run.score}"), 7),
        series("greedy evaluation", run.curve(f"eval_{run.score}"), 0),
    ]
    guides = [
        (name, run.policies[name]["mean"], _POLICY_COLOURS[name])
        for name in ("random", "bed-sitter")
        if name in run.policies
    ]
    score = f"{run.score.capitalize()} of an episode"
    stages, ticks = _stages(run), unit == "ticks"
    chart = line_chart(both, score, _X, unit, guides=guides, events=stages, zero=ticks, width=1140, height=400)
    yield page.card(chart, wide=True)
    if run.score == "survival":
        yield _chart(run, "Return of training episodes", "return", train_return="return")
    yield _chart(run, "Length of training episodes", "steps", zero=True, train_length="length")


def _stages(run: Results) -> list[tuple[str, float]]:
    """Where the curriculum changes the training worlds."""
    try:
        stages = Config.from_dict(run.config).stages
    except ValueError:  # settings of another version
        return []
    return [(f"stage {i + 1}", step) for i, (step, _) in enumerate(stages) if i]


def _chart(
    run: Results,
    title: str,
    unit: str,
    *,
    log: bool = False,
    zero: bool = False,
    guides: Any = (),
    **columns: str,
) -> str:
    """A card with a chart of some columns of metrics.csv; "" when none of them has values."""
    curves = {name: run.curve(column) for column, name in columns.items()}
    lines = [series(name, curve, i) for i, (name, curve) in enumerate(curves.items()) if len(curve)]
    return page.card(line_chart(lines, title, _X, unit, log=log, zero=zero, guides=guides)) if lines else ""


def _yardsticks_text(run: Results) -> str:
    if not run.policies:
        return ""
    over = f"over the means of {run.members} members for the trained ones" if run.members > 1 else "over episodes"
    return f"All play the same unseen episodes greedily. Intervals are 95%, {over}."


def _yardsticks(run: Results) -> Iterable[str]:
    if not run.policies:
        return
    rows, marks, bars = [], [], []
    for name, row in run.policies.items():
        low, high = row.get("low"), row.get("high")
        rows.append([name.strip(), number(row["mean"]), interval(low, high), f"{row['episodes']:,}"])
        marks.append("strong" if name in ("trained", "trained without memory") else "")
        if not name.startswith(" "):
            bars.append(Bar(name, row["mean"], low, high, _POLICY_COLOURS.get(name, 7)))
    unit = "mean survival (ticks)" if run.score == "survival" else "mean return"
    yield page.card(page.table(["policy", "mean", "95% interval", "episodes"], rows, "", marks=marks))
    yield page.card(bar_chart(bars, "Mean and 95% interval", unit))
    alt = "Mean survival of each policy, and the share of episodes still alive at each tick"
    caption = "survival.png: mean survival, and the share of episodes still alive at each tick."
    yield page.card(page.picture(run.folder / "survival.png", alt, caption), wide=True)


def _memory(run: Results) -> Iterable[str]:
    sentence = run.memory.get("sentence")
    if isinstance(sentence, str):
        yield page.quotation(sentence)
        alt = f"The memory probe's figures. {sentence}"
        steps = run.memory.get("env_steps")
        caption = f"memory.png, of the agent after {steps:,} steps." if isinstance(steps, int) else "memory.png"
        yield page.grid(page.card(page.picture(run.folder / "memory.png", alt, caption), wide=True))


# ---- the learner ----------------------------------------------------------------------------------------------------


def _inside_text(run: Results) -> str:
    return (
        "Values are means over the updates between two records. State norms and the largest Q-value are as of each "
        "record."
    )


def _inside(run: Results) -> Iterable[str]:
    clip = run.curve("clip_norm")
    guides = [("clipped at", float(clip.mean[-1]), 1)] if len(clip) and np.ptp(clip.members[-1]) == 0 else []
    norms = run.curve("grad_norm")
    if guides and len(norms) and norms.mean.max() < guides[0][1] / 20:
        guides = []  # the guide is so far above all norms that it would flatten the curve
    yield _chart(run, "Q-values", "Q", q="taken, in replay", q_max="largest, acting", target="TD target")
    yield _chart(run, "Absolute TD error", "TD error", log=True, td_error="mean", td_error_max="largest of an update")
    yield _chart(run, "Loss", "loss", log=True, loss="loss")
    yield _chart(run, "Gradient norm before clipping", "norm", log=True, guides=guides, grad_norm="norm")
    yield _chart(run, "Share of updates that were clipped", "share", zero=True, clipped="share")
    yield _chart(run, "Norm of the recurrent state while acting", "norm", zero=True, h_norm="h", c_norm="c")
    yield _chart(run, "Priority of the sampled sequences", "priority", priority="priority")
    yield _chart(
        run, "Shares", "share", zero=True, epsilon="random actions", replay_fill="replay filled", valid="trained on"
    )


def _lineage_text(run: Results) -> str:
    return f"{len(run.lineage)} times a worse member became a copy of a better one, with changed hyper-parameters."


def _lineage(run: Results) -> Iterable[str]:
    if not run.lineage:
        return
    copies = [(row["step"], int(row["member"]), int(row["parent"])) for row in run.lineage]
    yield page.card(lineage_chart(copies, run.members, run.env_steps, _X))
    for name in PER_MEMBER:
        curve = run.curve(name)
        if len(curve) and np.ptp(curve.members, axis=1).max() > 0:
            P = curve.members.shape[1]
            lines = [Series(f"member {p}", curve.x, curve.members[:, p], colour=p % 8) for p in range(P)]
            yield page.card(line_chart(lines, f"{name} of each member", _X, name, log=name != "gamma"))
    names = list(run.lineage[0])
    rows = [[number(row[n]) if n != "step" else f"{row[n]:,.0f}" for n in names] for row in run.lineage]
    shown = page.table([n.replace("_", " ") for n in names], rows, "")
    yield page.card(page.details(f"All {len(rows)} copies (lineage.csv)", shown), wide=True)


# ---- speed, settings, machine ---------------------------------------------------------------------------------------


def _speed_text(run: Results) -> str:
    return "Values are between two records. Time that none of the named phases takes is bookkeeping."


def _speed(run: Results) -> Iterable[str]:
    if not set(_PHASES) <= run.values.keys():
        return
    growth = np.stack([run.per_interval(column) for column in _PHASES])
    total = np.maximum(growth.sum(axis=0), 1e-12)
    shares = [(name, 100.0 * growth[i] / total) for i, name in enumerate(_PHASES.values())]
    yield page.card(stacked_chart(run.steps, shares, "Where the time goes", _X))
    rate = {"steps_per_s": "environment steps, all members"}
    lines = [series(name, run.curve(column), members=False, interval=False) for column, name in rate.items()]
    yield page.card(line_chart(lines, "Environment steps per second, all members", _X, "steps/s", zero=True))


def _settings(config: dict[str, Any]) -> str:
    """Every setting by group, with its meaning; those that differ from the defaults are marked."""
    defaults = Config().to_dict()
    rows: list[list[str]] = []
    marks = []
    for f in fields(Config):
        if f.name in GROUPS:
            rows.append([GROUPS[f.name]])
            marks.append("head")
        if f.name in config:
            changed = config[f.name] != defaults[f.name] and f.name != "run_dir"
            usual = setting_text(defaults[f.name]) if changed else ""
            rows.append([f.name, setting_text(config[f.name]), usual, f.metadata["meaning"]])
            marks.append("changed" if changed else "")
    unknown = sorted(set(config) - defaults.keys())
    if unknown:
        rows += [["not settings of this version"], *([name, setting_text(config[name]), "", ""] for name in unknown)]
        marks += ["head", *("changed" for _ in unknown)]
    everything = page.table(["setting", "value", "default", "meaning"], rows, "", numbers=False, marks=marks)
    mine = [row for row, mark in zip(rows, marks, strict=True) if mark == "changed"]
    short = page.table(["setting", "value", "default", "meaning"], mine, "", numbers=False)
    return (short if mine else "<p>All settings have their defaults.</p>") + page.details("All settings", everything)


def setting_text(value: Any) -> str:
    """A setting's value as text."""
    if value is None:
        return "none"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _sessions(run: Results) -> str:
    sessions = [s for s in run.sessions if isinstance(s.get("facts"), dict)]
    if not sessions:
        return ""
    names = dict.fromkeys(name for s in sessions for name in s["facts"])
    rows = [[name, *(str(s["facts"].get(name, "")) for s in sessions)] for name in names]
    head = [["from step", *(f"{s.get('step', 0):,}" for s in sessions)]]
    head.append(["begun", *(str(s.get("begun", "")) for s in sessions)])
    head += [row for row in rows if row[0] in _FACTS]
    columns = ["", *(f"start {i + 1}" for i in range(len(sessions)))]
    rest = page.table(columns, [row for row in rows if row[0] not in _FACTS], "", numbers=False)
    return page.table(columns, head, "", numbers=False) + page.details("All versions and build settings", rest)


def _last_record(run: Results) -> str:
    if not run.last:
        return ""
    rows = [[name, *(row.get(name, "") for row in run.last), MEANINGS.get(name, "")] for name in run.last[0]]
    columns = ["column", *(f"member {row['member']}" for row in run.last), "meaning"]
    return page.details(f"Step {int(run.last[0]['step']):,}", page.table(columns, rows, "", numbers=False))
