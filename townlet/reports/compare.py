"""Compare runs: their scores with intervals, the differences between them, and the settings that differ.

All runs are compared by the best kind of score that every one of them has. The interval of a difference is Welch's
(1947). It is over members, each of which is one independent training run, and it has a variance for each run. One
member says nothing about other seeds, so a run with one member has no interval over members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.metrics import Curve
from ..runs.results import Results
from ..settings.config import PER_MEMBER
from ..support.intervals import mean_interval, t95
from ..support.text import duration, interval, number

_OWN = frozenset(["run_dir", "wandb"])  # settings whose differences between runs mean nothing


@dataclass(frozen=True)
class Score:
    """How good a run is.

    Attributes:
        members: the mean of each member, float64 ``[P]``.
        mean: the mean over the members.
        low: the lower end of the mean's 95% interval; NaN where there is no interval.
        high: the upper end of the interval; NaN where there is none.
        over: what the interval is over, such as "3 members".
    """

    members: np.ndarray
    mean: float
    low: float
    high: float
    over: str


@dataclass(frozen=True)
class Difference:
    """The mean of one run minus the mean of another, with Welch's interval.

    Attributes:
        run: the name of the one run.
        against: the name of the other.
        mean: the difference of the means.
        low: the lower end of its 95% interval; NaN where one of the runs has a single member.
        high: the upper end of the interval; NaN likewise.
        verdict: what the interval shows, in words.
    """

    run: str
    against: str
    mean: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
        names: the runs' names, as they are shown.
        runs: what was recorded of each run.
        score_name: "survival" or "return".
        source: where the scores are from, such as "final evaluation".
        scores: the score of each run.
        differences: the difference of each later run from the first; none where the worlds differ.
        settings: the settings that differ: name -> a value for each run, None where a run does not know the setting.
        notes: what a reader of the intervals should know.
    """

    names: list[str]
    runs: list[Results]
    score_name: str
    source: str
    scores: list[Score]
    differences: list[Difference]
    settings: dict[str, list[Any]]
    notes: list[str]

    def curves(self) -> list[Curve]:
        """The curve to draw of each run: greedy evaluations where all runs have some, else training episodes."""
        column = "train" if self.source == "training episodes" else "eval"
        found = [run.curve(f"{column}_{self.score_name}") for run in self.runs]
        return found if all(map(len, found)) else [run.curve(f"train_{self.score_name}") for run in self.runs]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The columns' headings, and a line for each run."""
        columns = ["run", f"mean {self.score_name}", "95% interval", "over", "steps", "wall clock", "steps/s"]
        lines = []
        for name, run, score in zip(self.names, self.runs, self.scores, strict=True):
            cells = [name, number(score.mean), interval(score.low, score.high), score.over]
            lines.append([*cells, f"{run.env_steps:,}", duration(run.seconds), number(run.steps_per_s)])
        return columns, lines

    def text(self) -> str:
        """The whole comparison for a terminal."""
        columns, lines = self.table()
        out = [f"{self.score_name}, from each run's {self.source}", *_aligned([columns, *lines])]
        out += ["", *_aligned([[f"{d.run} minus {d.against}", f"{d.mean:+.4g}", *_said(d)] for d in self.differences])]
        if self.settings:
            settings = [[name, *map(str, values)] for name, values in self.settings.items()]
            out += ["", *_aligned([["setting", *self.names], *settings])]
        return "\n".join([*out, *([""] if self.notes else []), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values for a JSON file, with None where there is no number."""

        def known(value: float) -> float | None:
            return value if math.isfinite(value) else None

        runs = []
        for name, run, score in zip(self.names, self.runs, self.scores, strict=True):
            of_score = {k: known(getattr(score, k)) for k in ("mean", "low", "high")}
            runs.append(
                {
                    "name": name,
                    "env": run.config.get("env"),
                    "members": run.members,
                    "env_steps": run.env_steps,
                    "finished": run.finished,
                    "seconds": known(run.seconds),
                    "steps_per_s": known(run.steps_per_s),
                    "score": {**of_score, "over": score.over, "per_member": score.members.tolist()},
                }
            )
        differences = [
            {k: known(v) if isinstance(v, float) else v for k, v in vars(each).items()} for each in self.differences
        ]
        head = {"score": self.score_name, "source": self.source, "interval": "95%, Student's t; differences: Welch"}
        return {**head, "runs": runs, "differences": differences, "settings": self.settings, "notes": self.notes}


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Compare each later run with the first.

    Args:
        folders: the run folders.

    Raises:
        ValueError: there are fewer than two runs, one is given twice, a folder is no run folder, or a run has no score
            yet.
    """
    if len(folders) < 2:
        raise ValueError(f"folders has length {len(folders)}; expected at least 2 runs to compare")
    seen: dict[Path, str | Path] = {}
    for folder in folders:
        if (place := Path(folder).resolve()) in seen:
            raise ValueError(f"{folder} is the same run as {seen[place]}; expected each run once")
        seen[place] = folder
    runs = [Results.load(folder) for folder in folders]
    short = [run.name for run in runs]
    names = [s if short.count(s) == 1 else str(f) for s, f in zip(short, folders, strict=True)]
    score_name = "survival" if all(run.score == "survival" for run in runs) else "return"
    source, scores = _scores(runs, names, score_name)
    same_world = len({str(run.config.get("env")) for run in runs}) == 1
    pairs = list(zip(names, scores, strict=True))
    differences = [welch(*pairs[0], *other) for other in pairs[1:]] if same_world else []
    keys = dict.fromkeys(key for run in runs for key in run.config)
    settings = {key: [run.config.get(key) for run in runs] for key in keys if key not in _OWN}
    settings = {key: values for key, values in settings.items() if any(v != values[0] for v in values)}
    notes = [] if same_world else ["The worlds differ, so no difference of scores is computed."]
    return Comparison(names, runs, score_name, source, scores, differences, settings, notes + _notes(runs, names))


def welch(against: str, a: Score, run: str, b: Score) -> Difference:
    """The difference b - a with Welch's 95% interval over members. Degrees of freedom are rounded down.

    Args:
        against: the name of the run with score ``a``.
        a: the score to compare with.
        run: the name of the run with score ``b``.
        b: the score to compare.
    """
    mean = b.mean - a.mean
    n, m = len(a.members), len(b.members)
    if min(n, m) < 2:
        alone = " and ".join(name for name, k in ((against, n), (run, m)) if k < 2)
        verdict = f"nothing can be said: one member only in {alone} (train with --members 3 or more)"
        return Difference(run, against, mean, math.nan, math.nan, verdict)
    va, vb = a.members.var(ddof=1) / n, b.members.var(ddof=1) / m
    total = va + vb
    freedom = total**2 / (va**2 / (n - 1) + vb**2 / (m - 1)) if total > 0 else n + m - 2
    half = t95(int(freedom + 1e-9) + 1) * math.sqrt(total)
    low, high = mean - half, mean + half
    if low > 0 or high < 0:
        verdict = f"{run} is {'higher' if mean > 0 else 'lower'}"
    else:
        verdict = "no difference shown"
    if min(n, m) == 2:
        verdict += " (two members: the interval is wide by nature)"
    return Difference(run, against, mean, low, high, verdict)


def _scores(runs: Sequence[Results], names: Sequence[str], score_name: str) -> tuple[str, list[Score]]:
    """The best kind of score that all runs have, in words, and the score of each run."""
    kinds = {
        "final evaluation": [_final(run) if run.score == score_name else None for run in runs],
        "last greedy evaluation": [_last(run.curve(f"eval_{score_name}")) for run in runs],
        "training episodes": [_last(run.curve(f"train_{score_name}")) for run in runs],
    }
    for source, scores in kinds.items():
        found = [s for s in scores if s is not None]
        if len(found) == len(runs):
            return source, found
    lacking = {k: ", ".join(n for n, s in zip(names, scores, strict=True) if s is None) for k, scores in kinds.items()}
    missing = "; ".join(f"{kind} is missing in {where}" for kind, where in lacking.items())
    raise ValueError(f"no kind of score is known of all runs: {missing}")


def _final(run: Results) -> Score | None:
    row = run.policies.get("trained") or run.policies.get("trained without memory")
    if row is None or not run.finished:
        return None
    if run.members > 1:
        members = [p["mean"] for name, p in run.policies.items() if name.startswith("  member ")]
        return _over_members(np.array(members))
    low, high = (math.nan if row[k] is None else row[k] for k in ("low", "high"))
    return Score(np.array([row["mean"]]), row["mean"], low, high, f"{row['episodes']} episodes")


def _last(curve: Curve) -> Score | None:
    return _over_members(curve.members[-1][np.isfinite(curve.members[-1])]) if len(curve) else None


def _over_members(members: np.ndarray) -> Score:
    mean, half = mean_interval(members)
    return Score(members, mean, mean - half, mean + half, f"{len(members)} member{'s' if len(members) > 1 else ''}")


def _notes(runs: Sequence[Results], names: Sequence[str]) -> list[str]:
    """What a reader of the intervals should know."""
    notes = []
    steps = {run.env_steps for run in runs}
    if len(steps) > 1:
        notes.append("The runs have made different numbers of steps.")
    for run, name in zip(runs, names, strict=True):
        varied = [k for k, v in run.config.items() if k in PER_MEMBER and _several(v)]
        if varied and run.members > 1:
            notes.append(f"Members of {name} differ in {', '.join(varied)}: its interval is over that too.")
        if run.config.get("pbt_every"):
            notes.append(f"Members of {name} are copied from each other, not independent: its interval is too narrow.")
    if len(runs) > 2:
        notes.append("Each interval is for its own pair; of many pairs, one in twenty differs by chance.")
    return notes


def _said(difference: Difference) -> list[str]:
    around = f"({interval(difference.low, difference.high)})" if math.isfinite(difference.low) else ""
    return [around, difference.verdict]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _several(value: Any) -> bool:
    return isinstance(value, list) and len(set(value)) > 1
