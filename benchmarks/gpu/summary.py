"""summary.md of a first run on a GPU: short enough to be pasted into a report, and written anew after each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from step_runner import Result, lines

LONGEST = 30
"""Lines of a step's output that are quoted at most."""


def _starting(*words: str) -> Callable[[list[str]], list[str]]:
    return lambda text: [line for line in text if line.startswith(words)]


def _last(count: int) -> Callable[[list[str]], list[str]]:
    return lambda text: [line for line in text if line.strip()][-count:]


def _everything(text: list[str]) -> list[str]:
    return text


def _check(text: list[str]) -> list[str]:
    """Which forms are wrong, and how many ran."""
    return [line for line in text if line.startswith(("WRONG", "FAILED", "the context")) or "forms ran" in line]


def _pytest(text: list[str]) -> list[str]:
    return [line for line in text if line.startswith(("FAILED", "ERROR"))] + _last(1)(text)


QUOTED: Mapping[str, Callable[[list[str]], list[str]]] = {
    "clusters": _everything,
    "smoke_tiny": _check,
    "smoke_check": _check,
    "micro": _everything,
    "smoke_time": _everything,
    "one_check": _last(20),
    "pytest": _pytest,
    "pytest_step": _pytest,
    "memcheck": _last(2),
    "synccheck": _last(2),
    "racecheck": _last(2),
    "doctor": _last(16),
    "train": _last(4),
    "suite_roofline": _starting("(", "B, S", "==", "gpu-roofline"),
    "suite_update": _last(14),
    "suite_gpu": _last(40),
}
"""Step -> the lines of its output that are worth reading first. Of a step that went wrong, its last ones come too."""

LONG = ("smoke_time", "suite_gpu", "suite_roofline")  # tables that are worth more lines


def render(facts: Mapping[str, str], results: Sequence[Result], out: Path, *, rehearsal: bool = False) -> str:
    """The text. facts: what was measured on. out: the folder with the steps' outputs and quick.json."""
    parts = ["# REHEARSAL of the first run on a GPU: no GPU was used, and no figure below means anything" if rehearsal
             else f"# First run on a GPU: {facts.get('card', 'unknown card')}"]  # fmt: skip
    if rehearsal:
        stubbed = [f"- `{r.name}`: {r.note}" for r in results if r.note.startswith("stand-in")]
        parts.append("Something else ran in the place of these steps:\n\n" + ("\n".join(stubbed) or "- none yet"))
    parts.append(table([["what", "value"], *([k, v] for k, v in facts.items())]))
    steps = [_row(result, lines(out / f"{result.name}.txt")) for result in results]
    parts.append("## Steps\n\n" + table([["step", "result", "rc", "seconds", "note"], *steps]))
    figures = quick_figures(out / "quick.json")
    if figures:
        parts.append("## Key figures\n\n" + figures)
    for result in results:
        quoted = excerpt(result, lines(out / f"{result.name}.txt"))
        if quoted:
            parts.append(f"## {result.name}\n\n```\n" + "\n".join(quoted) + "\n```")
    return "\n\n".join(parts) + "\n"


def _row(result: Result, text: list[str]) -> list[str]:
    """A step's row. pytest ends with 0 where every test was skipped, too, so that its last line is needed as well."""
    verdict, rc, last = result.verdict, "" if result.rc is None else str(result.rc), ""
    if result.name.startswith("pytest") and result.rc is not None:
        last = "".join(_last(1)(text))
        if result.rc == 0 and " passed" not in last:
            verdict = "no test ran"
    return [result.name, verdict, rc, f"{result.seconds:.1f}", "; ".join(filter(None, [last, result.note]))]


def excerpt(result: Result, text: list[str]) -> list[str]:
    """What to quote of a step's output."""
    if result.rc is None or not text:
        return []
    keep = QUOTED.get(result.name, lambda _: [])(text)
    most = 6 * LONGEST if result.name in LONG else LONGEST
    if len(keep) > most:
        keep = [*keep[:most], f"... and {len(keep) - most} more lines"]
    if result.rc != 0:
        keep += [line for line in text[-10:] if line not in keep]
    return keep


def quick_figures(file: Path) -> str:
    """The tables of quick_bench.py: operator, whole update, nn.LSTM; and what failed."""
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    columns = {
        "peaks": ("fp32", "bf16", "bytes", "launch"),
        "operator": ("case", "dtype", "eager_ms", "graph_ms", "tflops", "error"),
        "update": ("case", "recorded", "ms", "updates_per_s", "member_updates_per_s", "refused"),
        "nn.LSTM": ("case", "dtype", "eager_ms", "error"),
        "part": ("case", "dtype", "part", "us", "launches"),
        "failed": ("case", "error"),
        "left out, no time": ("case",),
    }
    parts = []
    for what, keys in columns.items():
        chosen = [[_cell(row.get(key)) for key in keys] for row in rows if row.get("what") == what]
        if chosen:
            parts.append(f"{what}:\n\n" + table([list(keys), *chosen]))
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the heading."""
    heading, *others = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *others))
