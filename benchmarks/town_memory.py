"""Does memory pay in the Town? Compares the default agent with its memoryless control over several seeds.

    python benchmarks/town_memory.py --out runs/town_memory

Each run is `townlet train --seed S --threads 1 [--no-memory]` with nothing else changed, `--jobs` of them side by side.
(The number of threads changes the rounding of the encoder's products, and so the course of a run.) Runs that are
complete are kept, interrupted ones resumed, so the command can be stopped and called again. Then every agent and
yardstick plays the same unseen layouts, from full meters; the table's intervals are 95%, Student's t, over seeds for
trained agents and over episodes for the others. Writes table.md, table.json and survival.png into the folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from townlet import plots
from townlet.report import Agent, Report, Row, compare


def train(folder: Path, flags: list[str]) -> None:
    """One run, from the start or from where it stopped; its output goes to a log beside the folder."""
    if (folder / "summary.json").exists() and json.loads((folder / "summary.json").read_text())["finished"]:
        return
    begun = any((folder / "checkpoints").glob("*")) if folder.exists() else False
    command = ["--resume", str(folder)] if begun else ["--run-dir", str(folder), *flags]
    with open(folder.with_suffix(".log"), "a") as log:
        code = subprocess.run([sys.executable, "-m", "townlet", "train", *command], stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{folder.name} ended with exit code {code}; see {folder.with_suffix('.log')}")


def pooled(agents: list[Agent], episodes: int, memory: bool | None) -> np.ndarray:
    """Scores [seeds, episodes] of several runs in the same episodes."""
    return np.concatenate([a.evaluate(episodes, 0, memory=memory).score for a in agents])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/town_memory"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on (default: 3)")
    parser.add_argument("--episodes", type=int, default=256, help="unseen layouts (default: 256)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    options, extra = parser.parse_known_args()  # further flags go to `townlet train`
    options.out.mkdir(parents=True, exist_ok=True)

    kinds = {"lstm": [], "memoryless": ["--no-memory"]}
    runs = [
        (options.out / f"{kind}-seed{seed}", ["--seed", str(seed), "--threads", "1", *flags, *extra])
        for seed in range(options.seeds)
        for kind, flags in kinds.items()
    ]
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train(*run), runs))

    agents = {k: [Agent.load(options.out / f"{k}-seed{s}") for s in range(options.seeds)] for k in kinds}
    one = compare(agents["lstm"][0], options.episodes, 0)
    hand_made = {r.name: r for r in one.rows if not r.name.startswith("trained")}
    several = options.seeds > 1
    rows = [
        hand_made["random"],
        hand_made["bed-sitter"],
        Row("trained without memory", pooled(agents["memoryless"], options.episodes, None), several),
        Row("trained, state zeroed each step", pooled(agents["lstm"], options.episodes, False), several),
        Row("trained", pooled(agents["lstm"], options.episodes, None), several),
        hand_made["scripted (sees everything)"],
    ]
    report = replace(one, rows=rows)
    text = markdown(report, agents, options.out)
    (options.out / "table.md").write_text(text)
    (options.out / "table.json").write_text(json.dumps(report.to_dict(), indent=1))
    plots.survival(report, options.out / "survival.png")
    print(text)
    print(f"{time.perf_counter() - begun:.0f} s")


def markdown(report: Report, agents: dict[str, list[Agent]], out: Path) -> str:
    """The table for the README, each trained row with its seeds' means."""
    lines = ["| policy | mean survival | 95% interval | per seed | at the cap |", "|---|---|---|---|---|"]
    for row in report.rows:
        mean, half = row.interval
        means = row.scores.mean(axis=1)
        seeds = ", ".join(f"{m:.0f}" for m in means) if len(means) > 1 else ""
        capped = 100 * float(np.mean(row.scores >= (report.cap or np.inf)))
        lines.append(f"| {row.name} | {mean:.1f} | {mean - half:.1f} to {mean + half:.1f} | {seeds} | {capped:.0f}% |")
    seconds = {k: [json.loads((out / f"{k}-seed{s}/summary.json").read_text())["seconds"] for s in range(len(a))]
               for k, a in agents.items()}  # fmt: skip
    took = "; ".join(f"{k}: {', '.join(f'{s / 60:.1f}' for s in v)}" for k, v in seconds.items())
    steps = agents["lstm"][0].env_steps
    return "\n".join(lines) + f"\n\n{steps:,} environment steps per run; minutes of training ({took}).\n"


if __name__ == "__main__":
    main()
