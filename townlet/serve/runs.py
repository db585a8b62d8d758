"""The run folders below a folder, and what each tells of its run.

A file that is half written or damaged counts as missing.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from ..runs import checkpoint
from ..runs.folder import process_mark, read_settings
from ..runs.metrics import Metrics
from ..settings.config import Config
from ..support.files import read_small

PAGES = {
    "report.html": "text/html; charset=utf-8",
    "learning.png": "image/png",
    "survival.png": "image/png",
    "memory.png": "image/png",
}
"""The files of a run that the page links to or shows, with their types."""

_DEPTH = 3  # a run is found at most this many folders below the one given
_RUNS = 1000  # the search ends after so many runs
_SILENCE = 60.0  # after so many seconds without a sign of life a run counts as ended, if its process cannot be asked
_CONFIG, _JSON = 1 << 16, 1 << 20  # larger files, in bytes, are not read


class Run:
    """One run folder.

    Attributes:
        name: the folder's path, relative to the folder that is served.
        folder: where it is.
        metrics: its metrics.csv.
        lock: to be held while ``metrics`` is used.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.metrics = Metrics(folder / "metrics.csv")
        self.lock = threading.Lock()
        self._config: tuple[float, dict[str, Any]] = (-1.0, {})  # when config.yaml was written, and what it holds

    def config(self) -> dict[str, Any]:
        """What config.yaml holds now, unchecked."""
        path = self.folder / "config.yaml"
        written = _modified(path)
        if self._config[0] != written:
            try:
                self._config = written, read_settings(self.folder, largest=_CONFIG)
            except (OSError, ValueError):
                self._config = written, {}
        return self._config[1]

    def json(self, name: str) -> dict[str, Any]:
        """What a JSON file of the run holds now, such as status.json; an empty dict where it is missing."""
        try:
            text = read_small(self.folder / name, _JSON).decode("utf-8")
            found = json.loads(text, parse_float=_finite, parse_constant=lambda name: None)
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def agent_file(self) -> Path | None:
        """Where the newest weights are: in agent.ckpt, or in the newest checkpoint where there is no such file."""
        path = self.folder / "agent.ckpt"
        if os.path.isfile(path):
            return path
        try:
            return checkpoint.latest(self.folder / "checkpoints")
        except checkpoint.CheckpointError:
            return None

    def agent_version(self) -> str | None:
        """A text that changes whenever the newest weights do; None where there are none."""
        path = self.agent_file()
        try:
            return None if path is None else f"{path.name}.{path.stat().st_mtime_ns}"
        except OSError:
            return None

    def page(self, name: str) -> Path | None:
        """The path of one of ``PAGES``, or None where the run does not have it.

        The path never leads out of the run's folder.
        """
        path = self.folder / name
        inside = path.resolve().parent == self.folder.resolve()
        return path if name in PAGES and inside and os.path.isfile(path) else None

    def overview(self) -> dict[str, Any]:
        """What the list of runs shows: the run's world, state, progress and score."""
        with self.lock:
            self.metrics.refresh()
            config, status, summary = self.config(), self.json("status.json"), self.json("summary.json")
            recorded = float(self.metrics.steps.max(initial=0.0))
            curves = (self.metrics.curve(c, 60) for c in _SCORES)
            score = next((c for c in _SCORES if self.metrics.last(c) is not None), None)
            step = max(recorded, _number(status.get("step")))
            total = _number(config.get("total_steps")) or _number(summary.get("total_steps"))
            seconds = max(_number(status.get("seconds")), self.metrics.last("seconds") or 0.0)
            state = self._state(status, summary)
            return {
                "name": self.name,
                "env": str(config.get("env", summary.get("env", "unknown world"))),
                "level": _level(config),
                "members": max(1, int(_number(config.get("members"))), self.metrics.values.shape[2]),
                "state": state,
                "step": step,
                "total": total,
                "seconds": seconds,
                "left": self._left(step, total, seconds) if state == "training" else None,
                "score": None if score is None else {"column": score, "value": self.metrics.last(score)},
                "spark": next((c for c in curves if c is not None and len(c["x"]) > 1), None),
                "seen": max(_number(status.get("time")), _modified(self.folder / "metrics.csv")),
            }

    def _state(self, status: dict[str, Any], summary: dict[str, Any]) -> str:
        """The run's state.

        It is "training", "evaluating" (the table at the end), "finished", "stopped" (on purpose) or "ended" (for an
        unknown reason).
        """
        said = status.get("state")
        if said is None:  # written by a version of Townlet that gave no sign of life
            if summary:
                return "finished" if summary.get("finished") else "stopped"
            return "training" if time.time() - _modified(self.folder / "metrics.csv") < _SILENCE else "ended"
        summed_up = _modified(self.folder / "summary.json") >= _number(status.get("time")) - 1.0
        alive = _alive(status)
        if said == "training":
            return "training" if alive else "ended"
        if said == "trained" and not summed_up:
            return "evaluating" if alive else "finished"
        return "finished" if said == "trained" else "stopped"

    def _left(self, step: float, total: float, seconds: float) -> float | None:
        """The seconds left at the pace of the last twentieth of the records; None where there is no pace yet."""
        steps = self.metrics.steps
        if not total or not seconds or "seconds" not in self.metrics.columns:
            return None
        since = (0.0, 0.0)
        if steps.size >= 2:
            i = -min(steps.size, max(5, steps.size // 20))
            since = float(steps[i]), float(self.metrics.values[self.metrics.columns.index("seconds"), i, 0])
        done, took = step - since[0], seconds - since[1]
        return (total - step) * took / done if done > 0 and took > 0 else None

    def details(self) -> dict[str, Any]:
        """What the page of the run shows, except its curves."""
        overview, summary, memory = self.overview(), self.json("summary.json"), self.json("memory.json")
        policies = summary.get("policies")
        with self.lock:
            phases = {p: self.metrics.last(f"{p}_s") for p in ("act", "env", "replay", "update", "eval")}
            unreadable = self.metrics.unreadable
            rates = {c: self.metrics.last(c) for c in ("steps_per_s", "updates_per_s")}
        return overview | {
            "phases": {p: v for p, v in phases.items() if v is not None},
            "rates": rates,
            "settings": _settings(self.config()),
            "policies": policies if isinstance(policies, dict) else None,
            "score_name": str(summary.get("score", "score")),
            "memory": str(memory.get("sentence") or "") or None,
            "pages": [name for name in PAGES if self.page(name)],
            "agent": self.agent_version(),
            "unreadable": unreadable,
        }

    def curves(self, points: int) -> tuple[str, dict[str, Any]]:
        """The curves of all columns.

        Args:
            points: the most points of a curve.

        Returns:
            A version, which changes whenever a curve does, and column -> curve.
        """
        with self.lock:
            self.metrics.refresh()
            found = {c: self.metrics.curve(c, points) for c in self.metrics.columns}
            return self.metrics.version, {c: v for c, v in found.items() if v is not None}

    def curves_version(self) -> str:
        """The version that `curves` would return."""
        with self.lock:
            self.metrics.refresh()
            return self.metrics.version


_SCORES = ("eval_survival", "train_survival", "eval_return", "train_return")


class Runs:
    """The runs in a folder: the folder itself if it is a run folder, else those at most three folders below it.

    Args:
        root: the folder.

    Raises:
        ValueError: ``root`` is no folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if not self.root.is_dir():
            raise ValueError(f"{root} is no folder; expected a run folder, or a folder with runs")
        self._known: dict[str, Run] = {}
        self._looked = 0.0
        self._lock = threading.Lock()

    def all(self) -> list[Run]:
        """All runs, found anew at most once a second."""
        with self._lock:
            if time.monotonic() - self._looked > 1.0 or not self._known:
                folders = _run_folders(self.root)
                self._known = {n: self._known.get(n) or Run(n, f) for n, f in folders.items()}
                self._looked = time.monotonic()
            return list(self._known.values())

    def get(self, name: str) -> Run | None:
        """The listed run of that name, or None. The name is only looked up, never made into a path."""
        return next((run for run in self.all() if run.name == name), None)


def _run_folders(root: Path) -> dict[str, Path]:
    if _is_run(root):
        return {root.name: root}
    found: dict[str, Path] = {}
    for at, folders, _ in os.walk(root):
        depth = len(Path(at).relative_to(root).parts)
        inner = []
        for name in sorted(folders):
            path = Path(at) / name
            if _is_run(path):
                found[_shown(path.relative_to(root))] = path
            elif depth + 1 < _DEPTH and not name.startswith("."):
                inner.append(name)
        folders[:] = inner
        if len(found) >= _RUNS:
            break
    return found


def _shown(path: Path) -> str:
    """The name of a run. Bytes that are not text are shown as escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / "config.yaml") or os.path.isfile(folder / "metrics.csv")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _number(value: Any) -> float:
    """``value`` as a float where it is a finite number, else 0."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if ok else 0.0


def _alive(status: dict[str, Any]) -> bool:
    """Whether the process that gave the last sign of life still runs.

    For a process of another machine the age of the sign decides.
    """
    mark = str(status.get("process"))
    host, _, rest = mark.partition(":")
    pid = rest.partition(":")[0]
    mine = process_mark(os.getpid())
    if mine is not None and mine.partition(":")[0] == host and pid.isdecimal():
        return process_mark(int(pid)) == mark
    return time.time() - _number(status.get("time")) < _SILENCE


def _level(config: dict[str, Any]) -> str | None:
    """The level of the Town, "hamlet" or "town"; None for another world."""
    try:
        known = Config(env=config["env"], env_args=config.get("env_args") or {})
    except (KeyError, ValueError, TypeError):
        return None
    return str(known.evaluation_args.get("level", "town")) if known.is_town else None


def _settings(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The name, value, default and meaning of every setting, in the order of config.yaml."""
    default = Config().to_dict()
    meanings = {name: f.metadata["meaning"] for name, f in Config.__dataclass_fields__.items()}
    return [
        {
            "name": str(name),
            "value": _text(value),
            "default": _text(default[name]) if name in default else None,
            "meaning": meanings.get(name, ""),
        }
        for name, value in config.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={_text(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "-"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)
