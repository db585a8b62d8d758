r"""Does memory pay in the Town? Compares an agent with its memoryless control over several seeds.

    python benchmarks/town_memory.py --seeds 5 --compute-dtype bfloat16   # the town, as `townlet train` learns it
    python benchmarks/town_memory.py --seeds 5 --compute-dtype bfloat16 --out runs/hamlet_memory \
        --config benchmarks/town_memory_hamlet.yaml                       # the hamlet

Each run is `townlet train --seed S --threads 1 [--no-memory]`, and nothing else is changed but what `--config` or
further flags say. `--jobs` of them run side by side. (The number of threads changes the rounding of the encoder's
products, and so the course of a run.) Complete runs are kept and interrupted ones resumed, so the command can be
stopped and called again. `--measure` trains nothing and takes the runs that are complete. Then every agent and every
yardstick plays the same unseen layouts, from full meters. The table's intervals are 95% by Student's t, over seeds for
trained agents and over episodes for the others. The script writes table.md, table.json and survival.png into the
folder; the JSON goes to `--results` instead where that is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from townlet.report import Agent, Report, Row, compare
from townlet.reports import plots
from townlet.runs.folder import write_json
from townlet.settings.config import Config

KINDS: dict[str, list[str]] = {"lstm": [], "memoryless": ["--no-memory"]}


def train(folder: Path, flags: list[str]) -> None:
    """Train one run, from the start or from where it stopped. Its output goes to a log beside the folder."""
    if complete(folder):
        return
    begun = any((folder / "checkpoints").glob("*")) if folder.exists() else False
    command = ["--resume", str(folder)] if begun else ["--run-dir", str(folder), *flags]
    with open(folder.with_suffix(".log"), "a") as log:
        townlet = [sys.executable, "-P", "-m", "townlet"]  # -P: the installed package, not a source tree that hides it
        process = subprocess.Popen([*townlet, "train", *command], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    with open(folder.with_suffix(".cpu"), "a") as spent:  # a line for each process that worked on the run
        spent.write(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{folder.name} ended with exit code {code}; see {folder.with_suffix('.log')}")


def complete(folder: Path) -> bool:
    return (folder / "summary.json").exists() and summary(folder)["finished"]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def pooled(agents: dict[int, Agent], episodes: int, memory: bool | None) -> np.ndarray:
    """The scores ``[seeds, episodes]`` of several runs in the same episodes."""
    return np.concatenate([a.evaluate(episodes, 0, memory=memory).score for a in agents.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/town_memory"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on (default: 3)")
    parser.add_argument("--episodes", type=int, default=256, help="number of unseen layouts (default: 256)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    parser.add_argument("--results", type=Path, help="file for the figures as JSON (default: table.json in --out)")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure the complete runs")
    options, extra = parser.parse_known_args()  # further flags go to `townlet train`
    options.out.mkdir(parents=True, exist_ok=True)

    runs = {(kind, seed): options.out / f"{kind}-seed{seed}" for seed in range(options.seeds) for kind in KINDS}
    if not options.measure:
        with ThreadPoolExecutor(options.jobs) as pool:
            flags = [["--seed", str(seed), "--threads", "1", *KINDS[kind], *extra] for kind, seed in runs]
            list(pool.map(train, runs.values(), flags))
    runs = {run: folder for run, folder in runs.items() if complete(folder)}

    agents = {k: {seed: Agent.load(folder) for (kind, seed), folder in runs.items() if kind == k} for k in KINDS}
    if not agents["lstm"]:
        raise SystemExit(f"{options.out} holds no complete run with memory")
    one = compare(next(iter(agents["lstm"].values())), options.episodes, 0)
    hand_made = {r.name: r for r in one.rows if not r.name.startswith("trained")}
    trained = [
        ("trained without memory", "memoryless", None),
        ("trained, state zeroed each step", "lstm", False),
        ("trained", "lstm", None),
    ]
    rows = [
        hand_made["random"],
        hand_made["bed-sitter"],
        *(Row(name, pooled(agents[kind], options.episodes, memory), len(agents[kind]) > 1)
          for name, kind, memory in trained if agents[kind]),
        hand_made["scripted (sees everything)"],
    ]  # fmt: skip
    report = replace(one, rows=rows)
    results = figures(report, agents, runs)
    write_json(options.results or options.out / "table.json", results)
    text = markdown(report, results)
    (options.out / "table.md").write_text(text)
    plots.survival(report, options.out / "survival.png")
    print(text)


def figures(report: Report, agents: dict[str, dict[int, Agent]], runs: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """Everything that was measured: the settings, the policies with their seeds' means, and what each run cost."""
    some = next(iter(agents["lstm"].values()))
    plain = Config().to_dict()
    each = {"seed", "run_dir", "threads"}
    results: dict[str, Any] = {
        "settings": {k: v for k, v in some.config.to_dict().items() if v != plain[k] and k not in each},
        "env_steps": some.env_steps,
        "policies": report.to_dict(),
        "runs": {},
    }
    for row in report.rows:
        cell = results["policies"][row.name]
        cell["at_cap"] = float(np.mean(row.scores >= (report.cap or np.inf)))
        if row.name.startswith("trained"):
            seeds = agents["memoryless" if "without" in row.name else "lstm"]
            cell["seeds"] = {str(s): float(mean) for s, mean in zip(seeds, row.scores.mean(axis=1), strict=True)}
    for folder in runs.values():
        spent = folder.with_suffix(".cpu")  # missing where this command was killed as the run ended
        cpu = sum(map(float, spent.read_text().split())) if spent.exists() else None
        results["runs"][folder.name] = {"seconds": summary(folder)["seconds"], "cpu_seconds": cpu}
    return results


def markdown(report: Report, results: dict[str, Any]) -> str:
    """The table for the README, each trained row with its seeds' means."""
    lines = ["| policy | mean survival | 95% interval | per seed | at the cap |", "|---|---|---|---|---|"]
    for row in report.rows:
        (mean, half), cell = row.interval, results["policies"][row.name]
        seeds = ", ".join(f"{m:.0f}" for m in cell.get("seeds", {}).values())
        interval = "-" if np.isnan(half) else f"{mean - half:.1f} to {mean + half:.1f}"
        lines.append(f"| {row.name} | {mean:.1f} | {interval} | {seeds} | {100 * cell['at_cap']:.0f}% |")
    cost = {name: "?" if r["cpu_seconds"] is None else f"{r['cpu_seconds']:.0f}" for name, r in results["runs"].items()}
    took = "; ".join(f"{name}: {r['seconds'] / 60:.1f}, {cost[name]}" for name, r in results["runs"].items())
    return (
        "\n".join(lines) + f"\n\n{results['env_steps']:,} environment steps per run; "
        f"minutes of training, CPU seconds of the whole command ({took}).\n"
    )


if __name__ == "__main__":
    main()
