"""Does anything grow with time? Trains in the Town for a million steps and looks at its own process all the while.

    nice python benchmarks/soak.py --steps 1200000 --out runs/soak [--no-page]

Checkpoints, evaluations and records come hundreds of times more often than by default, so that what they leave behind
adds up. The script prints resident memory, Python objects, open files, threads and the run folder's size over time, and
the slope of each over the last four fifths. The slope is a least-squares fit through the means of eight stretches,
whose errors, unlike those of neighbouring samples, are nearly independent. It writes soak.csv into the folder.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from townlet.reports.html.run import LiveReport
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

STRETCHES = 8
UNITS = {"rss": ("resident memory", "KiB"), "objects": ("Python objects", ""), "files": ("open files", ""),
         "threads": ("threads", ""), "checkpoints": ("checkpoints", "KiB"), "records": ("records, events", "KiB"),
         "seconds": ("seconds per 10,000 steps", "s")}  # fmt: skip


def settings(steps: int, out: str) -> Config:
    """The settings of the default agent on one thread, with a replay that is full early and much to write."""
    return Config(
        total_steps=steps, run_dir=out, threads=1, replay_ratio=1.0, learning_starts=10_000, capacity=20_000,
        eval_every=10_000, eval_episodes=4, eval_max_steps=100, log_every=1_280, checkpoint_every=5_000,
        prioritised=True, members=1, curriculum="off",
    )  # fmt: skip


def look(folder: Path) -> dict[str, float]:
    """What the process and its folder take now."""
    gc.collect()  # so that only what is held is counted, not what waits to be freed
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {p: p.stat().st_size / 1024 for p in folder.rglob("*") if p.is_file()}
    checkpoints = sum(size for p, size in sizes.items() if p.suffix == ".ckpt")
    return {
        "rss": float(status["VmRSS"].split()[0]),
        "objects": float(len(gc.get_objects())),
        "files": float(len(os.listdir("/proc/self/fd"))),
        "threads": float(status["Threads"]),
        "checkpoints": checkpoints,
        "records": sum(sizes.values()) - checkpoints,
    }


def slope(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The slope per million steps, and the half-width of its 95% interval (Student's t, 6 degrees of freedom)."""
    x, y = (np.array([part.mean() for part in np.array_split(v, STRETCHES)]) for v in (steps / 1e6, values))
    line = np.polyfit(x, y, 1)
    error = math.sqrt(np.sum((y - np.polyval(line, x)) ** 2) / (STRETCHES - 2) / np.sum((x - x.mean()) ** 2))
    return float(line[0]), 2.447 * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_200_000, help="environment steps per member")
    parser.add_argument("--every", type=int, default=20_000, help="environment steps between two samples")
    parser.add_argument(
        "--no-page", action="store_true", help="write no report.html, whose making takes memory for all of metrics.csv"
    )
    parser.add_argument("--out", required=True, help="run folder to create")
    arguments = parser.parse_args()
    if arguments.no_page:
        LiveReport.update = lambda page: None  # type: ignore[method-assign]
    trainer = Trainer(settings(arguments.steps, arguments.out))
    assert trainer.folder is not None
    samples: list[dict[str, float]] = []
    act, clock = trainer.act_step, [time.perf_counter()]

    def watched() -> None:
        act()
        if trainer.env_steps // arguments.every > (trainer.env_steps - trainer.config.num_envs) // arguments.every:
            spent = (time.perf_counter() - clock[0]) * 1e4 / arguments.every
            samples.append({"step": float(trainer.env_steps), **look(trainer.folder), "seconds": spent})  # type: ignore[arg-type]
            if len(samples) % 10 == 1:
                print({k: round(v, 2) for k, v in samples[-1].items()}, flush=True)
            clock[0] = time.perf_counter()

    trainer.act_step = watched  # type: ignore[method-assign]
    trainer.train()
    with open(trainer.folder / "soak.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(samples[0]))
        writer.writeheader()
        writer.writerows(samples)
    print(table(samples, trainer))


def table(samples: list[dict[str, float]], trainer: Any) -> str:
    """The first value, the last value and the slope of each quantity, as a Markdown table."""
    late = samples[len(samples) // 5 :]
    steps = np.array([s["step"] for s in late])
    lines = [
        f"{trainer.env_steps:,} steps of {trainer.config.members} members, {trainer.updates:,} updates, "
        f"{trainer.elapsed:.0f} s",
        "",
        f"| | at {late[0]['step']:,.0f} steps | at the end | most | per million steps, 95% interval |",
        "|---|---|---|---|---|",
    ]
    for name, (what, unit) in UNITS.items():
        values = np.array([s[name] for s in late])
        per_million, half = slope(steps, values)
        columns = [f"{v:,.6g} {unit}".strip() for v in (values[0], values[-1], values.max())]
        lines.append(
            f"| {what} | {' | '.join(columns)} | {per_million:+,.4g} ± {half:.3g} {unit} |".replace(" |", " |")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
