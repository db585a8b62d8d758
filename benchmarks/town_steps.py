"""Simulator steps per second: one thread, uniform random actions, episodes ending and restarting as they do.

python benchmarks/town_steps.py --num-envs 1024
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import numpy as np

from townlet.envs import TownVectorEnv


def measure(num_envs: int, steps: int, rounds: int, **args: Any) -> list[float]:
    """Nanoseconds per environment step of each round, through TownVectorEnv.step."""
    envs = TownVectorEnv(num_envs, **args)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 6, (steps, num_envs))
    survived = 0
    times = []
    for done in range(-2, rounds):  # two rounds to warm up
        start = time.perf_counter()
        for row in actions:
            info = envs.step(row)[4]
        if done >= 0:
            times.append((time.perf_counter() - start) / (steps * num_envs) * 1e9)
        survived += int(info["survival_time"].sum())
    if survived == 0:
        raise SystemExit("nobody survived a tick: the simulator does not run")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"E = {options.num_envs}, one pinned thread, {options.rounds} rounds of {options.steps} steps")
    print(f"{'world':<28} {'obs':>5} {'median ns':>10} {'min ns':>8} {'median M steps/s':>18} {'best':>6}")
    worlds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("town, presence r=2", {}),
        ("town, presence, copy=False", {"copy": False}),
        ("town, kind r=2", {"window": "kind"}),
        ("town, whole map", {"partial": False}),
        ("hamlet, kind r=1", {"level": "hamlet"}),
    )
    for name, args in worlds:
        times = measure(options.num_envs, options.steps, options.rounds, **args)
        middle, best = statistics.median(times), min(times)
        size = TownVectorEnv(1, **args).args.observation.size
        print(f"{name:<28} {size:>5} {middle:>10.1f} {best:>8.1f} {1e3 / middle:>18.2f} {1e3 / best:>6.2f}")


if __name__ == "__main__":
    main()
