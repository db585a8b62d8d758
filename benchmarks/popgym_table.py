"""POPGym: ours against itself without memory, with the bug, and against two other libraries.

    python benchmarks/popgym_table.py                      # all of it: hours, most of them for the other libraries
    python benchmarks/popgym_table.py --methods ours zeroed-target --worlds RepeatPreviousEasy
    python benchmarks/popgym_table.py --table              # only print the results there are and draw the curves
    python benchmarks/popgym_table.py --out benchmarks/results/popgym   # go on with the published runs

Every method gets the environment steps, windows, updates, LSTM size and discount of popgym_table.yaml, except where
WORLDS gives a world its own. The methods are:

    ours            three seeds as members of one run; `cleared` beside it: the same agents played with their state
                    zeroed at each step
    zeroed-target   the same, but the target network forgets its state at each step, in training
    memoryless      the same, trained and played without memory
    tianshou        Tianshou's DRQN (peers/tianshou_drqn.py): pip install tianshou
    torchrl         TorchRL's LSTMModule and DQNLoss (peers/torchrl_dqn.py): pip install torchrl

A (world, method, seed) that is done is a file in --out and is not run again, so the command can be stopped and called
again. The figures are mean returns (at most 1) of greedy episodes at the end: 100 episodes of ours, the settings'
eval_episodes of the others. They are means over seeds with their 95% intervals.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from peers.budget import Budget

from townlet.evaluate import mean_interval
from townlet.settings.config import Config

SETTINGS = Path(__file__).with_suffix(".yaml")
# Where an action's consequence comes late: the cart drifts out of bounds over a hundred steps, which a horizon of five
# does not see, and an agent that balances forgets how it fell unless replay keeps it.
POLES = {"gamma": 0.95, "n_step": 3, "lr": 1e-3, "chrono_span": None, "capacity": 500_000}
# Where rewards come at once and much has to be held: what is ahead asks the LSTM only to count the steps. The mean
# is higher without dueling streams in Autoencode, alike in the others.
AT_ONCE = {"gamma": 0.5, "dueling": False}
# What differs in each world from the file of settings.
WORLDS: dict[str, dict[str, Any]] = {
    "PositionOnlyCartPoleEasy": POLES,
    "PositionOnlyCartPoleMedium": POLES,
    "RepeatPreviousEasy": {},
    "RepeatPreviousMedium": AT_ONCE,
    "RepeatFirstEasy": {},
    "CountRecallEasy": AT_ONCE,
    "AutoencodeEasy": AT_ONCE,
}
PEER_LR = 1e-3  # constant, as in Tianshou's example; TorchRL's tutorial has 3e-4
OURS = ("ours", "zeroed-target", "memoryless")
PEERS = {"tianshou": "peers.tianshou_drqn", "torchrl": "peers.torchrl_dqn"}
COLUMNS = (*OURS[:1], "cleared", *OURS[1:], *PEERS)
FINAL_EPISODES = 100
UNSEEN = 0.005  # smaller differences of returns do not show in the table's digits


def world_id(world: str) -> str:
    return f"popgym-{world}-v0"


def settings(world: str, **changes: Any) -> Config:
    """The settings of our agent in ``world``. They also say what the other methods may use."""
    return Config.from_yaml(SETTINGS, {"env": world_id(world), **WORLDS[world], **changes})


def train_ours(world: str, method: str, config: Config) -> dict[str, Any]:
    """Train all seeds as members of one run.

    Returns:
        The curve of each seed as (step, mean return), and the final returns by kind.
    """
    from popgym_cartpole import zeroed_target

    from townlet.report import Agent
    from townlet.training.trainer import Trainer

    trainer = Trainer(config, record=False, td_unroll=zeroed_target if method == "zeroed-target" else None)
    begun, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    if trainer.stopped_by is not None:
        raise SystemExit(128 + trainer.stopped_by)
    seconds = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    steps = [step for step, _ in trainer.evaluations]
    means = np.array([e.returns.mean(axis=1) for _, e in trainer.evaluations])  # [evaluations, seeds]
    agent = Agent.of(trainer)
    found: dict[str, Any] = {"steps": steps, "curves": means.T.tolist(), "seconds": seconds, "seeds": config.members}
    found["final"] = agent.evaluate(FINAL_EPISODES, config.seed).returns.mean(axis=1).tolist()
    if method == "ours":
        found["cleared"] = agent.evaluate(FINAL_EPISODES, config.seed, memory=False).returns.mean(axis=1).tolist()
    return found


def train_peer(world: str, method: str, seed: int, config: Config) -> dict[str, Any]:
    """Train one seed with another library."""
    import torch

    torch.set_num_threads(config.threads)
    names = [f.name for f in fields(Budget)]
    budget = Budget(**{n: getattr(config, n) for n in names} | {"lr": PEER_LR})
    try:
        peer = importlib.import_module(PEERS[method])
    except ImportError as error:
        raise SystemExit(f"{method}: {error}; pip install {method}, or leave it out with --methods") from None
    begun, cpu = time.perf_counter(), time.process_time()
    steps, means = [], []
    returns: list[float] = []
    for step, returns in peer.train(world_id(world), seed, budget):
        steps.append(step)
        means.append(float(np.mean(returns)))
        print(f"  {world} {method} seed {seed}: {step:,} steps, return {means[-1]:.3f}", flush=True)
    seconds = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    return {"steps": steps, "curves": [means], "final": [float(np.mean(returns))], "seconds": seconds, "seeds": 1}


def write(path: Path, found: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(found))
    os.replace(temporary, path)


def jobs(worlds: list[str], methods: list[str], seeds: int) -> Iterator[tuple[str, str, int | None]]:
    """The runs to make, as (world, method, seed). The seed is None where all seeds are one run."""
    for method in methods:
        for world in worlds:
            for seed in [None] if method in OURS else range(seeds):
                yield world, method, seed


def name_of(world: str, method: str, seed: int | None) -> str:
    return f"{world}.{method}" + ("" if seed is None else f".{seed}") + ".json"


def collect(out: Path, seeds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What is done so far: world -> column -> the final returns of the seeds, steps, curves, and CPU seconds of all."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for world in WORLDS:
        row = table[world] = {}
        for method in (*OURS, *PEERS):
            files = [name_of(world, method, s) for s in ([None] if method in OURS else range(seeds))]
            found = [json.loads((out / f).read_text()) for f in files if (out / f).exists()]
            if not found:
                continue
            row[method] = {
                "steps": found[0]["steps"],
                "curves": [c for f in found for c in f["curves"]],
                "final": [v for f in found for v in f["final"]],
                "cpu": sum(f["seconds"]["cpu"] for f in found),
            }
            if "cleared" in found[0]:
                row["cleared"] = {"final": [v for f in found for v in f["cleared"]]}
    return table


def cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not run"
    mean, half = mean_interval(np.array(entry["final"]))
    around = "" if math.isnan(half) else f" ± {half:.2f}"
    return f"{mean:.2f}{around} ({len(entry['final'])})"


def verdict(row: dict[str, Any]) -> str:
    """Whether ours is best among the methods that ran, or level with the best, as far as two digits show.

    It is level where the 95% intervals overlap.
    """
    if "ours" not in row:
        return ""
    mean, half = mean_interval(np.array(row["ours"]["final"]))
    better = []
    for name in COLUMNS[1:]:
        if name in row:
            other, width = mean_interval(np.array(row[name]["final"]))
            if other - np.nan_to_num(width) > mean + np.nan_to_num(half) + UNSEEN:
                better.append(name)
    so_far = "" if all(n in row for n in COLUMNS) else " so far"
    if better:
        return f"behind {', '.join(better)}{so_far}"
    best = all(mean >= np.mean(row[n]["final"]) - UNSEEN for n in COLUMNS[1:] if n in row)
    return ("best" if best else "level") + so_far


def markdown(table: dict[str, dict[str, Any]]) -> str:
    heads = ["world", *COLUMNS, "ours is"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for world, row in table.items():
        if row:
            cells = [world, *(cell(row.get(c)) for c in COLUMNS), verdict(row)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "CPU minutes per seed: " + "; ".join(_cost(table, m) for m in (*OURS, *PEERS) if _cost(table, m))]
    return "\n".join(lines)


def _cost(table: dict[str, dict[str, Any]], method: str) -> str:
    costs = [row[method]["cpu"] / 60 / len(row[method]["final"]) for row in table.values() if method in row]
    return f"{method} {min(costs):.1f} to {max(costs):.1f}" if costs else ""


def draw(table: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw the learning curves: a line for each method, and the seeds faintly."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    worlds = [w for w, row in table.items() if row]
    figure, axes = plt.subplots(2, math.ceil(len(worlds) / 2), figsize=(14, 6), squeeze=False, layout="constrained")
    for axis in axes.flat[len(worlds) :]:
        axis.set_visible(False)
    shown_methods: dict[str, Any] = {}  # name -> one of its lines
    for axis, world in zip(axes.flat, worlds, strict=False):
        for i, method in enumerate((*OURS, *PEERS)):
            entry = table[world].get(method)
            if not entry or not entry["curves"]:  # not run, or ended before its first evaluation
                continue
            shown = min(len(c) for c in entry["curves"])
            steps = np.array(entry["steps"][:shown]) / 1000
            curves = np.array([c[:shown] for c in entry["curves"]])
            axis.plot(steps, curves.T, color=f"C{i}", alpha=0.25, linewidth=0.8)
            (shown_methods[method],) = axis.plot(steps, curves.mean(axis=0), color=f"C{i}")
        axis.set_title(world, fontsize=10)
        axis.set_xlabel("thousand steps")
        axis.set_ylabel("return")
        axis.grid(alpha=0.3)
    if shown_methods:
        figure.legend(shown_methods.values(), shown_methods.keys(), loc="lower right")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS), metavar="WORLD")
    parser.add_argument("--methods", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS], metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="environment steps per seed (default: the settings')")
    parser.add_argument("--gamma", type=float, help="discount (default: the settings'); give another --out")
    parser.add_argument("--out", type=Path, default=Path("runs/popgym_table"))
    parser.add_argument("--table", action="store_true", help="only print and draw the results there are")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: expected at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = {"total_steps": options.steps, "lr_decay_steps": options.steps} if options.steps else {}
    if options.gamma is not None:
        changes["gamma"] = options.gamma
    for world, method, seed in [] if options.table else jobs(options.worlds, options.methods, options.seeds):
        file = options.out / name_of(world, method, seed)
        if file.exists():
            continue
        print(f"{file.stem}", flush=True)
        config = settings(world, members=options.seeds, memory=method != "memoryless", **changes)
        found = train_ours(world, method, config) if seed is None else train_peer(world, method, seed, config)
        write(file, found)
        print(f"{file.stem}: {', '.join(f'{v:.3f}' for v in found['final'])}, {found['seconds']['cpu']:.0f} CPU s")
    table = collect(options.out, options.seeds)
    if not any(table.values()):
        raise SystemExit(f"{options.out} holds no run")
    print(markdown(table))
    draw(table, options.out / "curves.png")


if __name__ == "__main__":
    sys.exit(main())
