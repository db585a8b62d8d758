"""Fills the part of README.md that is made from the JSON files, so that nobody copies figures by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from townlet.bench import results

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- begin: made by `run.py --markdown` -->", "<!-- end -->"


def fill(folder: Path, suites: list[str]) -> None:
    """Replace what stands between the marks by the tables of the suites.

    Args:
        folder: the folder of the JSON files.
        suites: the names of the suites, in the order of the tables.

    Raises:
        SystemExit: there are no results, one is of a quick run, or the marks are missing.
    """
    found = [done for suite in suites if (done := results.read(folder / f"{suite}.json")) is not None]
    if not found:
        raise SystemExit(f"{folder}: no results; run benchmarks/run.py first")
    quick = [done["suite"] for done in found if done["settings"].get("quick")]
    if quick:
        raise SystemExit(f"{folder}: {', '.join(quick)} came from --quick; their figures mean nothing")
    missing = sorted(set(suites) - {done["suite"] for done in found})
    text = README.read_text(encoding="utf-8")
    if not re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, flags=re.DOTALL):
        raise SystemExit(f"{README}: the marks are missing: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{_body(found, missing)}\n{END}{after}", encoding="utf-8")
    print(f"{README}: {len(found)} suites" + (f"; not measured: {', '.join(missing)}" if missing else ""))


def _body(found: list[dict[str, Any]], missing: list[str]) -> str:
    parts = ["", _machine(found[0]["machine"]), ""]
    bars = [bar for done in found for bar in done["bars"]]
    parts += ["### What was asked for", "", results.markdown(results.bar_cells(bars)), ""]
    if missing:
        parts += [f"Not measured: {', '.join(missing)}.", ""]
    for done in found:
        parts += [f"### {done['title']}", "", f"`{done['suite']}`; {results.peak_line(done)}.", ""]
        for table in done["tables"]:
            parts += [f"{table['title']}:", "", results.markdown(results.grid(table)), ""]
        parts += [f"{note}." for note in done["notes"]] + ([""] if done["notes"] else [])
    return "\n".join(parts)


def _machine(m: dict[str, Any]) -> str:
    return (
        f"{m['cpu']}, {m['processors']} processors, {m['memory_gib']} GiB; caches {m['caches']}; {m['system']}; "
        f"kernels {m['isa']} built by {m['compiler']}; torch {m['torch']} ({m['torch_capability']}), "
        f"Python {m['python']}, townlet {m['townlet']}."
    )
