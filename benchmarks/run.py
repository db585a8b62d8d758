"""Runs the benchmark suites, each in a process of its own, prints their tables and bars, and writes JSON.

python benchmarks/run.py                       runs all suites, into benchmarks/results/
python benchmarks/run.py op resets --quick     sees whether everything runs, at tiny sizes; writes no JSON
python benchmarks/run.py gpu gpu-roofline      runs what needs a GPU; "all" leaves it out where there is none
python benchmarks/run.py --resume              skips the suites that are in the folder already
python benchmarks/run.py --markdown            writes the tables of benchmarks/README.md; measures nothing
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    from suites import NEED_GPU, SUITES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"suites to run: {', '.join(SUITES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="run at tiny sizes, to see that everything works")
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: results/ beside this file)")
    parser.add_argument(
        "--resume", action="store_true", help="skip suites whose JSON is there and has the same settings"
    )
    parser.add_argument("--markdown", action="store_true", help="only write the tables of README.md from the JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # run the one suite in this process

    options = parser.parse_args()
    unknown = sorted(set(options.suites) - set(SUITES))
    if unknown:
        parser.error(f"SUITE is {unknown[0]}; expected some of {', '.join(SUITES)}")
    chosen = options.suites or list(SUITES)
    lacking = [] if options.markdown else [suite for suite in chosen if suite in NEED_GPU and _no_gpu()]
    if lacking and options.suites:
        print(f"{', '.join(lacking)}: needs a GPU, but {_no_gpu()}; nothing was measured", file=sys.stderr)
        return 2
    if lacking:
        print(f"left out, since {_no_gpu()}: {', '.join(lacking)}", flush=True)
        chosen = [suite for suite in chosen if suite not in lacking]
    if options.markdown:
        from readme import fill

        fill(options.out or RESULTS, list(SUITES))
        return 0
    if options.here:
        return _measure(chosen[0], options.quick, options.out)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or (Path(scratch) if options.quick else RESULTS)
        return _run(chosen, options.quick, options.resume, out)


def _no_gpu() -> str:
    from townlet.support.devices import missing

    return missing()


def _run(chosen: list[str], quick: bool, resume: bool, out: Path) -> int:
    """Run the suites one after the other.

    Returns:
        1 if one of them failed, else 0. A missed bar is a result, not a failure.
    """
    from townlet.bench import results

    begun, failed, bars = time.monotonic(), [], []
    for suite in chosen:
        path = out / f"{suite}.json"
        done = results.read(path) if resume else None
        if done is None or done["settings"].get("quick") != quick:
            command = [sys.executable, str(HERE / "run.py"), suite, "--here", "--out", str(out)]
            # Idle threads sleep, as they do under `townlet`, so that peers run under the same conditions.
            environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
            if subprocess.run([*command, *(["--quick"] if quick else [])], env=environment).returncode:
                failed.append(suite)
                continue
            done = results.read(path)
            assert done is not None
        else:
            print(f"{suite}: taken from {path}", flush=True)
        show(done)
        bars += done["bars"]
    if bars:
        print("\n" + results.text(results.bar_cells(bars)))
    print(f"\n{time.monotonic() - begun:.0f} s" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _measure(suite: str, quick: bool, out: Path) -> int:
    from suites import SUITES

    from townlet.bench import results
    from townlet.bench.problem import WrongResult

    module, function = SUITES[suite]
    try:
        report = getattr(importlib.import_module(module), function)(quick)
    except WrongResult as error:
        print(f"{suite}: WRONG RESULT: {error}", file=sys.stderr)
        return 1
    results.write(out / f"{suite}.json", report.to_dict())
    return 0


def show(done: dict[str, Any]) -> None:
    """A suite's tables as text."""
    from townlet.bench import results

    print(f"\n== {done['suite']}: {done['title']}\n   {results.peak_line(done)}")
    for table in done["tables"]:
        print(f"\n{table['title']}\n{results.text(results.grid(table))}")
    for note in done["notes"]:
        print(f"({note})")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
