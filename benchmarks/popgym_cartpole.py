"""Memory in bootstrapped values: PositionOnlyCartPole with the target's state carried, and zeroed at every step.

    python benchmarks/popgym_cartpole.py

Three seeds train side by side as members of one run with the settings of popgym_cartpole.yaml, as this command does:

    townlet train --env popgym-PositionOnlyCartPoleEasy-v0 --config benchmarks/popgym_cartpole.yaml --members 3

They then train again with one change: the target network forgets its state before every step, which is the bug that
this project exists for. Each agent plays 100 greedy episodes that it has not seen. The script exits with 1 when a seed
with the carried state is below 0.8, or when the control is not at least 0.2 lower.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from townlet import ops
from townlet.learning.networks import cut_memory
from townlet.report import Agent
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

SETTINGS = Path(__file__).with_suffix(".yaml")


def zeroed_target(online: Any, target: ops.PackedParams, batch: Any, spec: ops.TDSpec) -> ops.TDOutput:
    """`td_unroll` with a target network that starts every step from a zero state."""
    return ops.td_unroll(online, cut_memory(target.params), batch, spec)


def run(config: Config, carried: bool) -> tuple[list[float], float]:
    """Train; returns each member's mean return over the final episodes, and the seconds of training."""
    trainer = Trainer(config, record=False, td_unroll=None if carried else zeroed_target)
    begun = time.perf_counter()
    trainer.train()
    if trainer.stopped_by is not None:
        raise SystemExit(128 + trainer.stopped_by)
    seconds = time.perf_counter() - begun
    result = Agent.of(trainer).evaluate(config.final_eval_episodes, config.seed)
    return result.returns.mean(axis=1).tolist(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150_000, help="environment steps per seed (default: 150,000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    config = Config.from_yaml(
        SETTINGS, {"members": options.seeds, "total_steps": options.steps, "threads": options.threads}
    )
    table = {}
    print("| target network's state | mean return of each seed | mean | minutes |\n|---|---|---|---|")
    for name, carried in (("carried", True), ("zeroed at every step (control)", False)):
        means, seconds = run(config, carried)
        table[name] = means
        text = ", ".join(f"{m:.2f}" for m in means)
        print(f"| {name} | {text} | {sum(means) / len(means):.2f} | {seconds / 60:.1f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))
    good, control = table.values()
    if min(good) < 0.8 or sum(good) / len(good) - sum(control) / len(control) < 0.2:
        raise SystemExit("below the bar: every carried seed at least 0.8, the control at least 0.2 lower")


if __name__ == "__main__":
    main()
