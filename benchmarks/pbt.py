"""Population based training against the same population without it, from bad spreads of learning rates, in CartPole.

    python benchmarks/pbt.py

There are two spreads over 8 members. `wide`, 1e-6 to 1e-1, holds a good value and many useless ones. `low`, 1e-6 to
1e-4, holds no good value, so training has to move to one. PBT judges members by their training episodes (the default)
or by greedy evaluations of 8 episodes. Everything else is the same, seeds included. Each member then plays 50 greedy
episodes that it has not seen. The script prints a table for each spread. It exits with 1 when, from the wide spread,
the mean over members is not above the control's in every seed with either score.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from townlet.evaluate import mean_interval
from townlet.report import Agent
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

SPREADS = {"wide": "log:1e-6:1e-1", "low": "log:1e-6:1e-4"}
SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1", "members": 8, "num_envs": 8, "learning_starts": 1_000, "capacity": 20_000, "encoder": [32],
    "hidden_size": 32, "head_size": 32, "seq_len": 16, "burn_in": 4, "batch_size": 16, "replay_ratio": 8,
    "epsilon_end": 0.05, "epsilon_decay_steps": 5_000, "epsilon_ladder": 0, "lr_decay_steps": 0, "sync_every": 50,
    "gamma": 0.98, "eval_every": 0, "checkpoint_every": 0, "eval_max_steps": 500,
}  # fmt: skip


def run(config: Config) -> tuple[list[float], list[float], int]:
    """Train; returns the members' mean returns over the final episodes, their final learning rates, and the copies."""
    trainer = Trainer(config, record=False)
    trainer.train()
    if trainer.stopped_by is not None:
        raise SystemExit(128 + trainer.stopped_by)
    returns = Agent.of(trainer).evaluate(50, config.seed).returns.mean(axis=1)
    return returns.tolist(), trainer.schedules.hyper["lr"].tolist(), len(trainer.pbt.lineage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15_000, help="environment steps per member (default: 15,000)")
    parser.add_argument("--every", type=int, default=1_000, help="steps between events (default: 1,000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    better = True
    pbt = {"pbt_every": options.every, "eval_episodes": 8}
    kinds = {"without": {}, "PBT, training episodes": pbt, "PBT, greedy episodes": {**pbt, "pbt_score": "eval"}}
    for spread, lr in SPREADS.items():
        print(f"\nlr={lr}\n\n| | mean over members, per seed | mean | best member | members above 100 | minutes |")
        print("|---|---|---|---|---|---|")
        means = {}
        for name, settings in kinds.items():
            begun, rows = time.perf_counter(), []
            for seed in range(options.seeds):
                own = {"lr": lr, "seed": 100 * seed, "threads": options.threads, "total_steps": options.steps}
                rows.append(run(Config.from_dict({**SETTINGS, **settings, **own})))
            returns = np.array([r for r, _, _ in rows])  # [seeds, members]
            means[name] = returns.mean(axis=1)
            mean, half = mean_interval(means[name])
            per_seed = ", ".join(f"{m:.0f}" for m in means[name])
            best, above = returns.max(axis=1).mean(), int((returns > 100).sum())
            minutes = (time.perf_counter() - begun) / 60
            counts = f"{best:.0f} | {above} of {returns.size} | {minutes:.1f}"
            print(f"| {name} | {per_seed} | {mean:.0f} ± {half:.0f} | {counts} |", flush=True)
            keys = ("returns", "lr", "copies")
            figures[f"{spread}, {name}"] = [dict(zip(keys, row, strict=True)) for row in rows]
        if spread == "wide":
            better = all((means[name] > means["without"]).all() for name in kinds if name != "without")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if not better:
        raise SystemExit("below the bar: from the wide spread, means over members above the control's in every seed")


if __name__ == "__main__":
    main()
