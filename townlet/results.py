"""What a run folder holds for whoever looks at it: settings, metrics as arrays, the final table and all else.

Only files are read, so that a run of another version, one that is still training or one that was killed can be looked
at. Symbols: N records, P members.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .evaluate import t95
from .sessions import read_sessions


@dataclass(frozen=True)
class Curve:
    """One column of metrics.csv over the records that have it: x [N], members [N, P] (NaN: no value), mean and 95%
    interval over members [N]; the interval is NaN where fewer than two members have a value."""

    x: np.ndarray
    members: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, members: np.ndarray) -> Curve:
        """From values with gaps; records without any value are left out."""
        kept = np.isfinite(members).any(axis=1)
        x, members = x[kept], members[kept]
        n = np.isfinite(members).sum(axis=1)
        mean = np.nansum(members, axis=1) / n
        spread = np.sqrt(np.nansum((members - mean[:, None]) ** 2, axis=1) / np.maximum(n - 1, 1))
        half = np.array([t95(int(k)) for k in n]) * spread / np.sqrt(n)
        return cls(x, members, mean, mean - half, mean + half)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Results:
    """A run folder, read once."""

    folder: Path
    config: dict[str, Any]
    steps: np.ndarray  # [N]
    values: dict[str, np.ndarray]  # column -> [N, P]
    last: list[dict[str, str]]  # the last record as written, a row per member
    summary: dict[str, Any]  # empty while the run goes on
    memory: dict[str, Any]  # of `townlet memory`; empty without
    lineage: list[dict[str, float]]
    sessions: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Raises ValueError naming what is missing or cannot be understood."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder}: expected a run folder, with config.yaml in it")
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            assert isinstance(config, dict)
        except (AssertionError, UnicodeDecodeError, yaml.YAMLError):
            raise ValueError(f"{folder / 'config.yaml'}: expected 'setting: value' lines") from None
        steps, values, last = _metrics(folder / "metrics.csv")
        summary, memory = _json(folder / "summary.json"), _json(folder / "memory.json")
        return cls(folder, config, steps, values, last, summary, memory, _lineage(folder), read_sessions(folder))

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def members(self) -> int:
        """P, of the settings, or of what was recorded where they do not say."""
        return int(self.config.get("members") or len(self.last) or 1)

    @property
    def env_steps(self) -> int:
        """Steps per member that are recorded or summed up."""
        return int(max(self.summary.get("env_steps", 0), self.steps[-1] if len(self.steps) else 0))

    @property
    def seconds(self) -> float:
        """Wall clock at the last record; NaN before the first."""
        seconds = self.curve("seconds")
        return float(seconds.mean[-1]) if len(seconds) else math.nan

    @property
    def steps_per_s(self) -> float:
        """Environment steps of all members per second of the whole run; NaN before the first record."""
        return float(self.steps[-1]) * self.members / max(self.seconds, 1e-9) if len(self.steps) else math.nan

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished")) and self.summary.get("env_steps") == self.env_steps

    @cached_property
    def score(self) -> str:
        """ "survival" where the world has one, else "return"."""
        return "survival" if len(self.curve("train_survival")) or len(self.curve("eval_survival")) else "return"

    def curve(self, column: str) -> Curve:
        """A column of metrics.csv over the steps; empty where it is missing."""
        return Curve.of(self.steps, self.values.get(column, np.full((len(self.steps), 1), math.nan)))

    def per_interval(self, column: str) -> np.ndarray:
        """What a running total grew by at each record, [N]; 0 where the run began anew."""
        total = self.values[column][:, 0]
        return np.maximum(np.nan_to_num(np.diff(total, prepend=0.0)), 0.0)

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        """The final table by policy: mean, low, high, episodes; empty before the end."""
        return dict(self.summary.get("policies") or {})


def _metrics(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], list[dict[str, str]]]:
    """Steps, values by column, the last record's rows; lines that are not whole are left out."""
    if not path.exists():
        return np.empty(0), {}, []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        columns, *rows = [*csv.reader(file)] or [[]]
    rows = [row for row in rows if len(row) == len(columns)]
    if not {"step", "member"} <= set(columns) or not rows:
        return np.empty(0), {}, []
    try:
        table = _floats(rows)
    except ValueError:
        rows = [row for row in rows if _is_numbers(row)]
        table = _floats(rows)
    place = [columns.index("step"), columns.index("member")]
    rows = [row for row, known in zip(rows, np.isfinite(table[:, place]).all(axis=1), strict=True) if known]
    table = table[np.isfinite(table[:, place]).all(axis=1)]
    steps, record = np.unique(table[:, place[0]], return_inverse=True)
    members, member = np.unique(table[:, place[1]], return_inverse=True)
    values = np.full((len(steps), len(members), len(columns)), math.nan)
    values[record, member] = table
    whole = np.flatnonzero(np.bincount(record, minlength=len(steps)) == len(members))
    last = [row for row, at in zip(rows, record, strict=True) if len(whole) and at == whole[-1]]
    return (
        steps,
        {name: values[:, :, c] for c, name in enumerate(columns)},
        [dict(zip(columns, row, strict=True)) for row in last],
    )


def _floats(rows: list[list[str]]) -> np.ndarray:
    """[rows, columns]; an empty field is NaN. Raises ValueError for what is no number."""
    flat = np.fromiter((float(v) if v else math.nan for row in rows for v in row), dtype=float)
    return flat.reshape(len(rows), -1)


def _is_numbers(row: list[str]) -> bool:
    try:
        _floats([row])
    except ValueError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    """A file that may be missing or damaged: then nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lineage(folder: Path) -> list[dict[str, float]]:
    try:
        with open(folder / "lineage.csv", newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []
