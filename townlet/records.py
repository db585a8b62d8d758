"""The run folder: where it is, and the numbers written into it (metrics.csv, TensorBoard events, status.json,
summary.json)."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .evaluate import mean_interval
from .events import EventFile
from .files import append_whole, naming, replacing

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
"""Each column of metrics.csv, which has one row per member at each record; a field without a value is empty."""

COLUMNS = list(MEANINGS)


def new_folder(path: str | Path | None, world: str) -> Path:
    """Make the run's folder; ``None`` gives ``runs/<world>-<time>``, numbered when taken.

    Raises:
        ValueError: ``path`` exists (a run is never overwritten) or cannot be made.
    """
    try:
        if path is not None:
            folder = Path(path)
            folder.mkdir(parents=True)
            return folder
        name = re.sub(r"[^A-Za-z0-9.]+", "-", world).strip("-")
        base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        base.parent.mkdir(parents=True, exist_ok=True)
        for n in range(1, 1000):
            folder = base if n == 1 else base.with_name(f"{base.name}-{n}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
        raise ValueError(f"{base}: a thousand runs of this second exist")
    except FileExistsError:
        raise ValueError(
            f"{path} exists; a run is never overwritten: choose another --run-dir, or --resume {path}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path or 'runs'}: cannot be made ({error.strerror})") from None


class Sink(Protocol):
    """Takes numbers by tag."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Records:
    """Appends to metrics.csv and the TensorBoard events of a run folder; what is added is in the files at once.

    ``step``: where the run stands. What an interrupted run wrote after it is dropped (metrics.csv) or purged (events),
    since it is about to be written again; so is a torn last line. ``also`` gets what the events get.

    Raises:
        OSError: naming the file; metrics.csv then holds whole records only.
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
        """One row per member: ``common`` and the member's own values, by column name; NaN leaves a field empty.

        The events get mean and 95% interval over the members besides.
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
        """Sign of life: status.json, every two seconds and when ``state`` changes.

        ``state``: training, trained (``total_steps`` reached) or stopped (saved at a signal). Whoever reads it compares
        ``process`` with what runs: see `process_mark`. A disk without room for it does not end the run.
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
        """Have what was added survive a loss of power; a checkpoint must not know of records that the disk lost."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.sync()

    def close(self) -> None:
        """Close all of them."""
        self._file.close()
        for sink in self._sinks:
            sink.close()


def _short(value: float) -> str:
    return f"{value:.7g}"


def _tab(column: str) -> str:
    if column.startswith(("eval_", "train_")) and column != "eval_s":
        return column.split("_")[0]
    return "time" if column.endswith("_s") or column == "seconds" else "learning"


def _whole_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; a last line that a kill tore is none."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    rows = []
    for row in _whole_rows(path):
        if not (row.get("step") or "").isdigit() or int(row["step"]) > step:
            break
        rows.append({k: row.get(k) or "" for k in COLUMNS})
    return rows


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers; empty fields are NaN."""
    return [{k: float(v) if v else math.nan for k, v in row.items()} for row in _whole_rows(path)]


def process_mark(pid: int) -> str | None:
    """host:pid:start, which no other process ever has on this host; None when it does not run or /proc does not say."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{socket.gethostname()}:{pid}:{rest[18]}"


def write_json(path: str | Path, values: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write ``values`` in one move, so that a reader never sees half a file."""
    with replacing(path, durable=durable) as file:
        file.write(json.dumps(values, indent=2) + "\n")
