"""What a suite measured, as plain values (tables, bars and the machine), and how it is stored and shown.

It is stored as JSON and shown as text or Markdown. A bar is a figure that a suite is asked to reach.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine
from .timing import Timing

VERSION = 1
"""The version of the JSON's layout."""

Column = tuple[str, str, str]
"""A key in a row, a heading and a format specification, which may end in the unit "x" or "%"."""

TIMES: tuple[Column, ...] = (("median", "median ms", ".3f"), ("minimum", "min ms", ".3f"))


class Measurements:
    """Collects what a suite measures.

    Args:
        suite: the suite's name.
        title: one line for the reader.
        threads: the number of threads that torch was given.
        settings: whatever else a result depends on. A resumed run keeps finished results if these are equal.

    Attributes:
        device: the GPU that was measured; None for the CPU.
        peaks: the peaks of the machine, by name.
        tables: the tables, each with title, columns and rows.
        bars: the figures that were asked for, and what was measured.
        notes: lines below the tables.
    """

    def __init__(self, suite: str, title: str, *, threads: int, settings: Mapping[str, Any] | None = None):
        self.suite, self.title, self.threads = suite, title, threads
        self.settings = dict(settings or {})
        self.device: str | None = None
        self.peaks: dict[str, float] = {}
        self.tables: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._watch = machine.LoadWatch()

    def start(self) -> Measurements:
        """Pin the process and measure the peaks."""
        self.cpus = machine.pin(self.threads)
        self.peaks = machine.peaks(self.threads)
        return self

    def peaks_again(self) -> None:
        """Measure the peaks once more and keep the higher ones: the first may have met a busy moment."""
        for name, value in machine.peaks(self.threads).items():
            self.peaks[name] = max(self.peaks[name], value)

    def table(self, title: str, columns: Iterable[Column]) -> list[dict[str, Any]]:
        """Add a table.

        Args:
            title: the table's title.
            columns: its columns.

        Returns:
            The table's rows, to append to. A key that is missing in a row leaves its cell empty.
        """
        rows: list[dict[str, Any]] = []
        self.tables.append({"title": title, "columns": [list(c) for c in columns], "rows": rows})
        return rows

    def bar(
        self,
        work: str,
        values: Mapping[str, float],
        *,
        bar: float,
        aim: float | None,
        form: str = ".2fx",
        most: bool = False,
    ) -> None:
        """Compare the worst of some values with what is asked for.

        Args:
            work: what was measured.
            values: case -> value.
            bar: what is asked for.
            aim: what would be better still; None for nothing.
            form: the values' format, as in `Column`.
            most: whether values may be at most ``bar`` rather than at least.
        """
        if not values:
            return
        where = (max if most else min)(values, key=lambda case: values[case])
        worst = values[where]

        def reached(mark: float) -> bool:
            return worst <= mark if most else worst >= mark

        self.bars.append(
            {"work": work, "where": where, "value": worst, "bar": bar, "aim": aim, "form": form, "most": most}
            | {"met": reached(bar), "aim_met": aim is not None and reached(aim)}
        )

    def note(self, text: str) -> None:
        """Add a line below the tables, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "version": VERSION,
            "suite": self.suite,
            "title": self.title,
            "threads": self.threads,
            "cpus": getattr(self, "cpus", []),
            "settings": self.settings,
            "device": self.device,
            "machine": machine.machine_facts(),
            "load": self._watch.so_far(),
            "peaks": self.peaks,
            "tables": self.tables,
            "bars": self.bars,
            "notes": self.notes,
        }


def times(timing: Timing, flops: float = 0.0, peak: float = 0.0) -> dict[str, float]:
    """The cells of a row that tell a time.

    Args:
        timing: the time.
        flops: the operations of a call; 0 leaves out GFLOP/s and the share.
        peak: the most FLOP/s possible; 0 leaves out the share.

    Returns:
        The median and the minimum in ms, the number of samples, GFLOP/s at the minimum, and the share of the peak.
    """
    row = {"median": timing.median * 1e3, "minimum": timing.minimum * 1e3, "samples": timing.samples}
    if flops:
        row["gflops"] = flops / timing.minimum / 1e9
        if peak:
            row["share"] = flops / timing.minimum / peak
    return row


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of one or more positive values."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON in one move, so that a reader sees either the old results or the new ones.

    Raises:
        ValueError: a number is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Read what `write` wrote; None where there is no file of this version."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return results if isinstance(results, dict) and results.get("version") == VERSION else None


# ---- text and Markdown ----------------------------------------------------------------------------------------------


def show(value: Any, form: str) -> str:
    """One value in a column's format. Text stays as it is, and None becomes an empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if form.endswith("x"):
        return f"{value:{form[:-1]}}x"
    return f"{value:{form}}"


def grid(table: Mapping[str, Any]) -> list[list[str]]:
    """The heading and the rows of a table, as text."""
    columns = table["columns"]
    return [[c[1] for c in columns], *([show(row.get(key), form) for key, _, form in columns] for row in table["rows"])]


def text(cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal. Its first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(cells[0]), *rows])


def bar_cells(bars: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """A table of what was asked for and what was measured."""
    rows = [["work", "measured", "at", "bar", "aim", "met"]]
    for b in bars:
        met = ("yes, and the aim" if b["aim_met"] else "yes") if b["met"] else "NO"
        rows.append([b["work"], show(b["value"], b["form"]), b["where"]])
        rows[-1] += [show(b["bar"], b["form"]), show(b["aim"], b["form"]), met]
    return rows


def peak_line(results: Mapping[str, Any]) -> str:
    """A line with the peaks and the load."""
    p, load = results["peaks"], results["load"]
    if results.get("device"):
        gemm = f"torch.mm {p['fp32'] / 1e12:.1f} TFLOP/s fp32, {p['bf16'] / 1e12:.1f} bf16"
        return f"{results['device']}: {gemm}, copy {p['bytes'] / 1e9:.0f} GB/s, launch {p['launch'] * 1e6:.1f} us"
    threads = "1 thread" if results["threads"] == 1 else f"{results['threads']} threads"
    bf16 = f", bf16 dot products {p['bf16'] / 1e9:.0f}" if p.get("bf16") else ""
    peaks = f"peak of {threads}: {p['fp32'] / 1e9:.0f} GFLOP/s fp32{bf16}, torch.mm 1024 {p['mm'] / 1e9:.0f}"
    steal = "" if load["steal"] is None else f", stolen {load['steal']:.1%}"
    return f"{peaks}; load {load['load_before']} before, {load['load_after']} after{steal}"
