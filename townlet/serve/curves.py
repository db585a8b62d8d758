"""metrics.csv as it grows: only what was appended is read, and a curve has a bounded number of points."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..results import Curve

_CHUNK = 1 << 22  # bytes read at a time
_TAIL = 512  # bytes before the place reached, by which it is known again


def open_regular(path: Path) -> BinaryIO:
    """The file, to read.

    Raises:
        OSError: it is no regular file; a pipe, for one, would never end.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    return open(path, "rb")


class Metrics:
    """The numbers of one metrics.csv: ``steps`` [N] and ``values`` [C, N, P] for ``columns``, NaN where unknown.

    A last line without its end waits until the rest is there; a line that is not numbers is counted in ``unreadable``.
    A file that became another one (a resumed run drops what it will repeat) is read anew.
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
        self._row: dict[int, int] = {}  # step -> place in _values
        self._steps, self._values = np.empty(0), np.empty((0, 0, 0))

    @property
    def steps(self) -> np.ndarray:
        return self._steps[: len(self._row)]

    @property
    def values(self) -> np.ndarray:
        return self._values[:, : len(self._row)]

    @property
    def version(self) -> str:
        """Changes whenever the content does."""
        return f"{self.generation}.{self._offset}"

    def refresh(self) -> None:
        """Take in what was appended since the last call. A file that cannot be read is an empty one."""
        try:
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
        except OSError:
            if self._offset:
                self._forget()

    def _take(self, text: bytes) -> None:
        lines = text.decode("utf-8", "replace").splitlines()
        if not self._fields:
            self._fields = lines.pop(0).split(",")
            self.columns = [f for f in self._fields if f not in ("step", "member")]
            self._values = np.empty((len(self.columns), 0, 0))
        rows = []
        for line in lines:
            try:
                row = [float(f) if f else np.nan for f in line.split(",")]
                if len(row) != len(self._fields):
                    raise ValueError
            except ValueError:
                self.unreadable += 1
            else:
                rows.append(row)
        if rows and {"step", "member"} <= set(self._fields):
            self._place(np.array(rows))

    def _place(self, rows: np.ndarray) -> None:
        """rows [R, fields] into the table; members count up from 0, so that no damaged line asks for a million."""
        step, member = (rows[:, self._fields.index(name)].tolist() for name in ("step", "member"))
        good, at, members = [], [], self._values.shape[2]
        for i, (s, m) in enumerate(zip(step, member, strict=True)):
            if math.isfinite(s) and m in range(members + 1):
                members = max(members, int(m) + 1)
                good.append(i)
                at.append(self._row.setdefault(s, len(self._row)))
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

    def last(self, column: str) -> float | None:
        """The newest value, mean over members; None when there is none."""
        if column not in self.columns or not len(self._row):
            return None
        values = self.values[self.columns.index(column)]
        known = np.nonzero(np.isfinite(values).any(axis=1))[0]
        return None if not known.size else float(np.nanmean(values[known[-1]]))

    def curve(self, column: str, points: int) -> dict[str, Any] | None:
        """At most ``points`` points of a column: x, members (a list per member), mean, low, high; None for no data.

        Records are taken together by 2^i at a time, as few as that needs, so that points that are full stay as they
        are; x and a member's value are the means over those records. mean and the 95% interval (Student's t) are over
        members.
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
    """Means over finite values of each ``together`` rows: [N, P] -> [ceil(N / together), P], NaN where none is."""
    if together == 1:
        return values
    padded = np.full((-(-len(values) // together) * together, values.shape[1]), np.nan)
    padded[: len(values)] = values
    groups = padded.reshape(-1, together, values.shape[1])
    with np.errstate(invalid="ignore"):
        return np.nansum(groups, axis=1) / np.isfinite(groups).sum(axis=1)


def _plain(values: np.ndarray) -> list[float | None]:
    """For JSON: NaN as None, seven digits."""
    return [float(f"{v:.7g}") if np.isfinite(v) else None for v in values.tolist()]
