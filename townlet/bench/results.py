"""What a suite measured, as plain values: tables, bars and the machine; JSON on disk, text or Markdown to read."""

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
"""Of the JSON's layout."""

Column = tuple[str, str, str]
"""Key in a row, heading, format: a format specification, with "x" or "%" behind it where that is the unit."""

TIMES: tuple[Column, ...] = (("median", "median ms", ".3f"), ("minimum", "min ms", ".3f"))


class Report:
    """Collects a suite's results.

    Args:
        suite: its name.
        title: one line for the reader.
        threads: what torch was given.
        settings: whatever else a result depends on; a finished report is taken over by a resumed run if these are
            equal.
    """

    def __init__(self, suite: str, title: str, *, threads: int, settings: Mapping[str, Any] | None = None):
        self.suite, self.title, self.threads = suite, title, threads
        self.settings = dict(settings or {})
        self.device: str | None = None  # the GPU that was measured; None for the CPU
        self.peaks: dict[str, float] = {}
        self.tables: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._watch = machine.LoadWatch()

    def start(self) -> Report:
        """Pin the process and measure the peaks."""
        self.cpus = machine.pin(self.threads)
        self.peaks = machine.peaks(self.threads)
        return self

    def peaks_again(self) -> None:
        """Measure the peaks once more and keep the higher ones: the first may have met a busy moment."""
        for name, value in machine.peaks(self.threads).items():
            self.peaks[name] = max(self.peaks[name], value)

    def table(self, title: str, columns: Iterable[Column]) -> list[dict[str, Any]]:
        """A new table; the rows to append to it (a missing key leaves its cell empty)."""
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
        """Hold the worst of `values` (case -> value) against what is asked for; most: the bar is an upper one."""
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
        """A line below the tables."""
        if text not in self.notes:
            self.notes.append(text)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "suite": self.suite,
            "title": self.title,
            "threads": self.threads,
            "cpus": getattr(self, "cpus", []),
            "settings": self.settings,
            "device": self.device,
            "machine": machine.describe(),
            "load": self._watch.report(),
            "peaks": self.peaks,
            "tables": self.tables,
            "bars": self.bars,
            "notes": self.notes,
        }


def times(timing: Timing, flops: float = 0.0, peak: float = 0.0) -> dict[str, float]:
    """A row's cells: median and minimum in ms; with flops, GFLOP/s at the minimum; with peak, the share of it."""
    row = {"median": timing.median * 1e3, "minimum": timing.minimum * 1e3, "samples": timing.samples}
    if flops:
        row["gflops"] = flops / timing.minimum / 1e9
        if peak:
            row["share"] = flops / timing.minimum / peak
    return row


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; values positive, at least one."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def write(path: Path, results: Mapping[str, Any]) -> None:
    """As JSON, through a file beside it: a reader sees the old results or the new ones. Not-a-number is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """What `write` left there; None where there is nothing of this version."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return results if isinstance(results, dict) and results.get("version") == VERSION else None


# ---- to read --------------------------------------------------------------------------------------------------------


def show(value: Any, form: str) -> str:
    """One value in a column's format; text as it is, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if form.endswith("x"):
        return f"{value:{form[:-1]}}x"
    return f"{value:{form}}"


def grid(table: Mapping[str, Any]) -> list[list[str]]:
    """A table's heading and rows as text."""
    columns = table["columns"]
    return [[c[1] for c in columns], *([show(row.get(key), form) for key, _, form in columns] for row in table["rows"])]


def text(cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
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
    """What was asked for and what came."""
    rows = [["work", "measured", "at", "bar", "aim", "met"]]
    for b in bars:
        met = ("yes, and the aim" if b["aim_met"] else "yes") if b["met"] else "NO"
        rows.append([b["work"], show(b["value"], b["form"]), b["where"]])
        rows[-1] += [show(b["bar"], b["form"]), show(b["aim"], b["form"]), met]
    return rows


def peak_line(results: Mapping[str, Any]) -> str:
    """The peaks and the load, in words."""
    p, load = results["peaks"], results["load"]
    if results.get("device"):
        gemm = f"torch.mm {p['fp32'] / 1e12:.1f} TFLOP/s fp32, {p['bf16'] / 1e12:.1f} bf16"
        return f"{results['device']}: {gemm}, copy {p['bytes'] / 1e9:.0f} GB/s, launch {p['launch'] * 1e6:.1f} us"
    threads = "1 thread" if results["threads"] == 1 else f"{results['threads']} threads"
    bf16 = f", bf16 dot products {p['bf16'] / 1e9:.0f}" if p.get("bf16") else ""
    peaks = f"peak of {threads}: {p['fp32'] / 1e9:.0f} GFLOP/s fp32{bf16}, torch.mm 1024 {p['mm'] / 1e9:.0f}"
    steal = "" if load["steal"] is None else f", stolen {load['steal']:.1%}"
    return f"{peaks}; load {load['load_before']} before, {load['load_after']} after{steal}"
