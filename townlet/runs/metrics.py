"""Writes and reads metrics.csv of a run, and passes on what is written to TensorBoard's events.

Symbols: C columns, N records, P members.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..support.files import append_whole, naming, open_regular, replacing
from ..support.intervals import mean_interval, t95
from .events import EventFile
from .folder import process_mark, write_json

MEANINGS = {
    "step": "environment steps of the member so far",
    "member": "which member, from 0",
    "seconds": "wall clock since the run began, without pauses between resumptions",
    "updates": "updates of the member so far",
    "epsilon": "share of random actions, mean over its environments",
    "lr": "learning rate of the member, before the decay",
    "lr_now": "the learning rate in use",
    "gamma": "discount of the member",
    "clip_norm": "largest gradient norm of the member",
    "epsilon_end": "share of random actions of the member after the decay",
    "loss": "loss, mean over the updates since the last record",
    "td_error": "mean absolute TD error of the trained transitions, over the same updates (so the next eight)",
    "td_error_max": "largest absolute TD error of an update, averaged over the updates",
    "q": "mean Q-value of the replayed actions",
    "target": "mean TD target of the trained transitions",
    "grad_norm": "gradient norm before clipping",
    "clipped": "share of updates whose gradient was clipped",
    "priority": "mean replay priority of the sampled sequences",
    "valid": "share of sampled transitions after burn-in that were trained on (the rest is padding and resets)",
    "q_max": "largest Q-value among legal actions, mean over the environments at the step just acted",
    "h_norm": "Euclidean norm of the LSTM's output h, mean over the environments at that step",
    "c_norm": "Euclidean norm of the LSTM's cell c, mean over the environments at that step",
    "replay_fill": "share of the replay buffer that holds transitions",
    "episodes": "training episodes that ended since the last record",
    "train_return": "their mean return (exploring; undiscounted, before reward_scale)",
    "train_length": "their mean length in steps",
    "train_survival": "their mean survival in ticks, where the world has one",
    "eval_return": "mean return of greedy episodes, in the rows of an evaluation",
    "eval_survival": "mean survival of greedy episodes, likewise",
    "steps_per_s": "environment steps per second since the last record, all members together",
    "updates_per_s": "updates per second since the last record, of each member",
    "act_s": "seconds spent choosing actions since the run began",
    "env_s": "seconds spent in the worlds",
    "replay_s": "seconds spent storing",
    "update_s": "seconds spent sampling and learning",
    "eval_s": "seconds spent on evaluations",
}
"""The meaning of each column of metrics.csv, which has one row per member at each record.

A field without a value is empty.
"""

COLUMNS = list(MEANINGS)

_CHUNK = 1 << 22  # bytes read at a time
_TAIL = 512  # the last bytes read, by which the next reading tells whether it is still the same file


# ---- writing --------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """What takes numbers by tag: `EventFile` and `WandbLog`."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Records:
    """Appends to metrics.csv and the TensorBoard events of a run folder. What is added is in the files at once.

    Args:
        folder: the run folder.
        step: where the run stands. What an interrupted run wrote after it is dropped from metrics.csv and purged from
            the events, since the run is about to write it again. A torn last line is dropped too.
        tensorboard: whether to write events.
        also: receives what the events receive.

    Raises:
        OSError: a file cannot be written; the message names it, and metrics.csv then holds only whole records.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = True, also: Sink | None = None) -> None:
        self.path = folder / "metrics.csv"
        rows = _rows_until(self.path, step) if self.path.exists() else []
        with replacing(self.path) as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed by close()
        self._events = EventFile(folder, step) if tensorboard else None
        self._sinks: list[Sink] = [sink for sink in (self._events, also) if sink is not None]
        self._folder, self._beat = folder, ("", 0.0)  # state and time of the last beat

    def add(self, step: int, common: Mapping[str, float], members: Sequence[Mapping[str, float]]) -> None:
        """Append one row per member. The events also receive the mean over the members and its 95% interval.

        Args:
            step: environment steps per member so far.
            common: values of every member's row by column name; NaN leaves a field empty.
            members: the own values of each member, likewise.

        Raises:
            OSError: a file cannot be written; the message names it.
        """
        text = io.StringIO()
        scalars: dict[str, float] = {}
        writer = csv.DictWriter(text, COLUMNS)
        for p, own in enumerate(members):
            values = {k: v for k, v in {**common, **own}.items() if not math.isnan(v)}
            writer.writerow({"step": step, "member": p, **{k: _short(v) for k, v in values.items()}})
            scalars |= {f"{_tab(name)}/{name}/member_{p}": value for name, value in values.items()}
        append_whole(self._file, text.getvalue().encode(), self.path)
        if not self._sinks:
            return
        for name in members[0] if len(members) > 1 else ():
            mean, half = mean_interval(np.array([own[name] for own in members]))
            if not math.isnan(half):
                whole = {"mean": mean, "low95": mean - half, "high95": mean + half}
                scalars |= {f"{_tab(name)}/{name}/{what}": value for what, value in whole.items()}
        for sink in self._sinks:
            sink.add(step, scalars)

    def beat(self, state: str, step: int, updates: int, seconds: float) -> None:
        """Write status.json, the run's sign of life, every two seconds and whenever ``state`` changes.

        The file's ``process`` tells a reader whether the run is alive (see `process_mark`). A full disk does not end
        the run here.

        Args:
            state: "training", "trained" (``total_steps`` reached) or "stopped" (saved at a signal).
            step: environment steps per member so far.
            updates: updates per member so far.
            seconds: wall-clock time of the run so far.
        """
        now = time.monotonic()
        if state == self._beat[0] and now - self._beat[1] < 2.0:
            return
        self._beat = state, now
        sign = {"state": state, "step": step, "updates": updates, "seconds": round(seconds, 3)}
        with contextlib.suppress(OSError):
            path = self._folder / "status.json"
            sign |= {"time": round(time.time(), 3), "process": process_mark(os.getpid())}
            write_json(path, sign, durable=False)

    def sync(self) -> None:
        """Make sure that what was added is on the disk. A checkpoint must not outlive the records before it."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.sync()

    def close(self) -> None:
        """Close the files, and ``also`` with them."""
        self._file.close()
        for sink in self._sinks:
            sink.close()


def _short(value: float) -> str:
    return f"{value:.7g}"


def _tab(column: str) -> str:
    if column.startswith(("eval_", "train_")) and column != "eval_s":
        return column.split("_")[0]
    return "time" if column.endswith("_s") or column == "seconds" else "learning"


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The rows up to ``step`` as text. The first row that does not begin with a step ends them."""
    columns, *lines = _split(_whole_lines(path)) or [[]]
    rows = []
    for line in lines:
        row = dict(zip(columns, line, strict=False))
        if not row.get("step", "").isdigit() or int(row["step"]) > step:
            break
        rows.append({name: row.get(name, "") for name in COLUMNS})
    return rows


# ---- reading --------------------------------------------------------------------------------------------------------


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, in the order of the file.

    A last line that a kill tore, and lines that are not numbers, are left out.

    Returns:
        One dict per row, column -> value; an empty field is NaN.

    Raises:
        OSError: the file cannot be read.
    """
    columns, *lines = _split(_whole_lines(path)) or [[]]
    rows = (_numbers(line, len(columns)) for line in lines)
    return [dict(zip(columns, row, strict=True)) for row in rows if row is not None]


def _whole_lines(path: str | Path) -> bytes:
    data = Path(path).read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _split(lines: bytes) -> list[list[str]]:
    """The fields of each line."""
    return [line.split(",") for line in lines.decode("utf-8", "replace").splitlines()]


def _numbers(fields: list[str], columns: int) -> list[float] | None:
    """A line's values, NaN where a field is empty; None for a line that is not ``columns`` numbers."""
    try:
        values = [float(field) if field else math.nan for field in fields]
    except ValueError:
        return None
    return values if len(values) == columns else None


@dataclass(frozen=True)
class Curve:
    """One column of metrics.csv over the records that have it."""

    x: np.ndarray  # [N] the records' steps
    members: np.ndarray  # [N, P], NaN where a member has no value
    mean: np.ndarray  # [N], over members
    low: np.ndarray  # [N], lower end of the mean's 95% interval; NaN where fewer than two members have a value
    high: np.ndarray  # [N], upper end likewise

    @classmethod
    def of(cls, x: np.ndarray, members: np.ndarray) -> Curve:
        """The curve of ``x`` ``[N]`` and ``members`` ``[N, P]``, NaN for gaps, without records that have no value."""
        kept = np.isfinite(members).any(axis=1)
        x, members = x[kept], members[kept]
        n = np.isfinite(members).sum(axis=1)
        mean = np.nansum(members, axis=1) / n
        spread = np.sqrt(np.nansum((members - mean[:, None]) ** 2, axis=1) / np.maximum(n - 1, 1))
        half = np.array([t95(int(k)) for k in n]) * spread / np.sqrt(n)
        return cls(x, members, mean, mean - half, mean + half)

    def __len__(self) -> int:
        return len(self.x)


class Metrics:
    """The numbers of one metrics.csv, read as it grows: each reading takes only what was appended.

    A last line without its end waits until the rest is there. A file that became another one is read anew; this happens
    when a resumed run drops what it will repeat.

    Args:
        path: the file.

    Attributes:
        columns: the names of the columns without step and member.
        unreadable: how many lines were left out because they do not hold numbers for each column.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.generation = path, 0
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self.columns: list[str] = []
        self.unreadable = 0
        self._fields: list[str] = []
        self._offset, self._tail = 0, b""
        self._row: dict[float, int] = {}  # step -> place in _values
        self._newest: dict[float, dict[int, list[str]]] = {}  # step -> member -> fields, of the last two records
        self._steps, self._values = np.empty(0), np.empty((0, 0, 0))

    @property
    def steps(self) -> np.ndarray:
        """The records' steps, ``[N]`` float64, in the order of the file."""
        return self._steps[: len(self._row)]

    @property
    def values(self) -> np.ndarray:
        """The numbers, ``[C, N, P]`` float64, NaN where unknown."""
        return self._values[:, : len(self._row)]

    @property
    def version(self) -> str:
        """A text that changes whenever the content does."""
        return f"{self.generation}.{self._offset}"

    def refresh(self) -> None:
        """Call `read`, and take a file that cannot be read for an empty one."""
        try:
            self.read()
        except OSError:
            if self._offset:
                self._forget()

    def read(self) -> None:
        """Take in what was appended since the last call.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        with open_regular(self.path) as file:
            file.seek(self._offset - len(self._tail))
            if file.read(len(self._tail)) != self._tail:
                self._forget()
                file.seek(0)
            while True:
                chunk = file.read(_CHUNK)
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if not whole:
                    return
                self._take(whole)
                self._offset += len(whole)
                self._tail = (self._tail + whole)[-_TAIL:]
                file.seek(self._offset)

    def _take(self, lines: bytes) -> None:
        rows = _split(lines)
        if not self._fields:
            self._fields = rows.pop(0)
            self.columns = [f for f in self._fields if f not in ("step", "member")]
            self._values = np.empty((len(self.columns), 0, 0))
        found = [(row, _numbers(row, len(self._fields))) for row in rows]
        texts = [row for row, values in found if values is not None]
        self.unreadable += len(rows) - len(texts)
        if texts and {"step", "member"} <= set(self._fields):
            self._place(texts, np.array([values for _, values in found if values is not None]))

    def _place(self, texts: list[list[str]], rows: np.ndarray) -> None:
        """Put rows ``[R, fields]`` into the table.

        Members have to count up from 0, so that no damaged line can ask for a million of them.
        """
        step, member = (rows[:, self._fields.index(name)].tolist() for name in ("step", "member"))
        good, at, members = [], [], self._values.shape[2]
        for i, (s, m) in enumerate(zip(step, member, strict=True)):
            if math.isfinite(s) and m in range(members + 1):
                members = max(members, int(m) + 1)
                good.append(i)
                at.append(self._row.setdefault(s, len(self._row)))
                self._newest.setdefault(s, {})[int(m)] = texts[i]
        self._newest = dict(sorted(self._newest.items())[-2:])
        self.unreadable += len(rows) - len(good)
        self._grow(len(self._row), members)
        self._steps[at] = rows[good, self._fields.index("step")]
        own = rows[good][:, [self._fields.index(c) for c in self.columns]].T
        who = rows[good, self._fields.index("member")].astype(int)
        self._values[:, at, who] = np.where(np.isfinite(own), own, np.nan)

    def _grow(self, n: int, members: int) -> None:
        _, room, p = self._values.shape
        if n <= room and members <= p:
            return
        room, p = 2 * n if n > room else room, max(p, members)
        steps, values = np.zeros(room), np.full((len(self.columns), room, p), np.nan)
        steps[: self._steps.size] = self._steps
        values[:, : self._values.shape[1], : self._values.shape[2]] = self._values
        self._steps, self._values = steps, values

    def last_record(self) -> list[dict[str, str]]:
        """The newest record that has a row for every member.

        Returns:
            One dict per member, column -> text; empty where there is no such record.
        """
        for rows in reversed(self._newest.values()):
            if len(rows) == self._values.shape[2]:
                return [dict(zip(self._fields, rows[p], strict=True)) for p in range(len(rows))]
        return []

    def last(self, column: str) -> float | None:
        """A column's newest value, as the mean over members; None where there is no value."""
        if column not in self.columns or not len(self._row):
            return None
        values = self.values[self.columns.index(column)]
        known = np.nonzero(np.isfinite(values).any(axis=1))[0]
        return None if not known.size else float(np.nanmean(values[known[-1]]))

    def curve(self, column: str, points: int) -> dict[str, Any] | None:
        """A column thinned to at most ``points`` points, as plain values.

        Each point takes 2^i records together, with the smallest i that suffices. So a point that is full stays as it
        is when the file grows. ``x`` and a member's value are means over those records.

        Args:
            column: its name.
            points: the most points.

        Returns:
            ``together`` (records per point), ``x``, ``members`` (a list per member), ``mean``, ``low`` and ``high``
            (the 95% interval by Student's t over members); None where the column has no values.
        """
        if column not in self.columns:
            return None
        values = self.values[self.columns.index(column)]
        known = np.isfinite(values).any(axis=1)
        order = np.argsort(self.steps[known], kind="stable")
        x, y = self.steps[known][order], values[known][order]
        if not x.size:
            return None
        together = 1
        while -(-x.size // together) > points:
            together *= 2
        curve = Curve.of(_means(x[:, None], together)[:, 0], _means(y, together))
        return {
            "together": together,
            "x": _plain(curve.x),
            "members": [_plain(own) for own in curve.members.T],
            "mean": _plain(curve.mean),
            "low": _plain(curve.low),
            "high": _plain(curve.high),
        }


def _means(values: np.ndarray, together: int) -> np.ndarray:
    """Means over the finite values of each ``together`` rows, NaN where there are none.

    ``[N, P]`` becomes ``[ceil(N / together), P]``.
    """
    if together == 1:
        return values
    padded = np.full((-(-len(values) // together) * together, values.shape[1]), np.nan)
    padded[: len(values)] = values
    groups = padded.reshape(-1, together, values.shape[1])
    with np.errstate(invalid="ignore"):
        return np.nansum(groups, axis=1) / np.isfinite(groups).sum(axis=1)


def _plain(values: np.ndarray) -> list[float | None]:
    """The values for JSON: in seven digits, with None for NaN."""
    return [float(f"{v:.7g}") if np.isfinite(v) else None for v in values.tolist()]
