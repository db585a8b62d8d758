"""What a run folder holds, for reports: settings, metrics as arrays, the final table and everything else.

Only files are read. So it works for a run of another version, for one that is still training and for one that was
killed. Symbols: N records, P members.
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

from .folder import read_settings
from .metrics import Curve, Metrics
from .sessions import read_sessions


@dataclass(frozen=True)
class Results:
    """The content of a run folder, read once."""

    folder: Path
    config: dict[str, Any]  # the settings, unchecked
    steps: np.ndarray  # [N], ascending
    values: dict[str, np.ndarray]  # column -> [N, P], NaN where unknown
    last: list[dict[str, str]]  # the last whole record as written, a row per member
    summary: dict[str, Any]  # of summary.json; empty while the run goes on
    memory: dict[str, Any]  # what `townlet memory` wrote; empty without
    lineage: list[dict[str, float]]  # the rows of lineage.csv; empty without
    sessions: list[dict[str, Any]]  # what `read_sessions` gives

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read a run folder.

        Raises:
            ValueError: ``folder`` is no run folder, or its config.yaml does not hold settings.
            OSError: config.yaml or metrics.csv cannot be read.
        """
        folder = Path(folder)
        config = read_settings(folder)
        metrics = Metrics(folder / "metrics.csv")
        if metrics.path.exists():
            metrics.read()
        order = np.argsort(metrics.steps, kind="stable")
        values = dict(zip(metrics.columns, metrics.values[:, order], strict=True))
        return cls(
            folder=folder,
            config=config,
            steps=metrics.steps[order],
            values=values,
            last=metrics.last_record(),
            summary=_json(folder / "summary.json"),
            memory=_json(folder / "memory.json"),
            lineage=_lineage(folder),
            sessions=read_sessions(folder),
        )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def members(self) -> int:
        """P as the settings have it; where they do not, as metrics.csv has it."""
        recorded = max((values.shape[1] for values in self.values.values()), default=0)
        return int(self.config.get("members") or recorded or 1)

    @property
    def env_steps(self) -> int:
        """Environment steps per member, as of the last record or the summary."""
        return int(max(self.summary.get("env_steps", 0), self.steps[-1] if len(self.steps) else 0))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds at the last record; NaN before the first."""
        seconds = self.curve("seconds")
        return float(seconds.mean[-1]) if len(seconds) else math.nan

    @property
    def steps_per_s(self) -> float:
        """Environment steps of all members per second of the whole run; NaN before the first record."""
        return float(self.steps[-1]) * self.members / max(self.seconds, 1e-9) if len(self.steps) else math.nan

    @property
    def finished(self) -> bool:
        """Whether the run reached its end, and nothing was recorded after it."""
        return bool(self.summary.get("finished")) and self.summary.get("env_steps") == self.env_steps

    @cached_property
    def score(self) -> str:
        """What tells good from bad: "survival" where the world has it, else "return"."""
        return "survival" if len(self.curve("train_survival")) or len(self.curve("eval_survival")) else "return"

    def curve(self, column: str) -> Curve:
        """A column of metrics.csv over the steps; an empty curve where it is missing."""
        return Curve.of(self.steps, self.values.get(column, np.full((len(self.steps), 1), math.nan)))

    def per_interval(self, column: str) -> np.ndarray:
        """How much a running total grew since the record before, ``[N]``; 0 where the run began anew."""
        total = self.values[column][:, 0]
        return np.maximum(np.nan_to_num(np.diff(total, prepend=0.0)), 0.0)

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        """The final table, policy -> mean, low, high and episodes; empty before the end."""
        return dict(self.summary.get("policies") or {})


def _json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where the file is missing or damaged."""
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
