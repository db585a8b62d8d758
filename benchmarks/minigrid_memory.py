"""MiniGrid-MemoryS7: how often does the agent choose the end of the corridor that matches the object seen before?

    python benchmarks/minigrid_memory.py                   # three seeds as members of one run; needs minigrid
    python benchmarks/minigrid_memory.py --seeds 1 --steps 500_000

The script trains with the settings of minigrid_memory.yaml. A run that was interrupted goes on when the command is
called again. An episode with a positive return is a success; an agent that does not remember succeeds in half of them.
The script writes the curve and the final figures (256 unseen greedy episodes for each seed, also with the state zeroed
at each step) to results/minigrid_memory.json and draws docs/images/minigrid.png. It exits with 1 when a seed stays
below 0.95.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from townlet.evaluate import Evaluation
from townlet.report import Agent
from townlet.runs.checkpoint import CheckpointError
from townlet.runs.folder import write_json
from townlet.settings.config import Config
from townlet.training.progress import Progress
from townlet.training.trainer import Trainer

SETTINGS = Path(__file__).with_suffix(".yaml")
ROOT = SETTINGS.parents[1]
SOLVED = 0.95


def success(evaluation: Evaluation) -> list[float]:
    """The share of successful episodes of each member."""
    shares: list[float] = (evaluation.returns > 0).mean(axis=1).tolist()
    return shares


class Recorded(Trainer):
    """A trainer that writes down how often each evaluation succeeds."""

    def evaluate(self) -> Evaluation:
        result = super().evaluate()
        assert self.folder is not None
        rows = [row for row in curve(self.folder) if row["step"] < self.env_steps]
        write_json(self.folder / "success.json", [*rows, {"step": self.env_steps, "success": success(result)}])
        return result


def curve(folder: Path) -> list[dict[str, Any]]:
    """What `Recorded` wrote down."""
    file = folder / "success.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return rows


def run(folder: Path, config: Config) -> dict[str, Any]:
    """Train, from the start or from where the run stopped; returns the curve and the final figures."""
    try:
        trainer = Recorded.resume(folder)
    except CheckpointError:
        trainer = Recorded(config, record=True)
    progress = Progress(trainer.config.total_steps, start=trainer.env_steps, members=config.members)
    try:
        trainer.train(progress)
    finally:
        progress.close()
    if trainer.stopped_by is not None:
        raise SystemExit(f"saved at step {trainer.env_steps:,}; call again to go on")
    agent, done = Agent.of(trainer), trainer.config
    ways = {"carried": True, "zeroed at each step": False}
    final = {k: success(agent.evaluate(done.final_eval_episodes, done.seed, memory=m)) for k, m in ways.items()}
    return {"steps": trainer.env_steps, "seconds": trainer.elapsed, "final": final, "curve": curve(folder)}


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw success by step: a thin line for each seed and a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = np.array([row["step"] for row in found["curve"]]) / 1e6
    members = len(found["final"]["carried"])
    each = np.array([row["success"] for row in found["curve"]]).reshape(len(steps), members)  # empty in a short run
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    axes.plot(steps, each, color="#56B4E9", linewidth=1)
    axes.plot(steps, each.mean(axis=1), color="#0072B2", linewidth=2.5, label="mean of the seeds")
    axes.axhline(SOLVED, color="black", linestyle=":", label=f"solved: {SOLVED:g}")
    axes.axhline(0.5, color="#999999", linestyle="--", label="either end, without memory")
    axes.set(xlabel="environment steps per seed (millions)", ylabel="success, greedy", ylim=(0, 1.02))
    axes.set_title("MiniGrid-MemoryS7", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_000_000, help="environment steps per seed (default: 2,000,000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that step the environments (default: 0)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "minigrid_memory")
    parser.add_argument("--results", type=Path, default=SETTINGS.parent / "results" / "minigrid_memory.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "minigrid.png")
    options = parser.parse_args()
    changes = {"members": options.seeds, "total_steps": options.steps, "lr_decay_steps": options.steps}
    changes |= {"threads": options.threads, "workers": options.workers, "run_dir": str(options.out)}
    found = run(options.out, Config.from_yaml(SETTINGS, changes))
    write_json(options.results, found)
    draw(found, options.picture)
    for name, shares in found["final"].items():
        print(f"state {name}: success {', '.join(f'{s:.3f}' for s in shares)}")
    if min(found["final"]["carried"]) < SOLVED:
        raise SystemExit(f"below {SOLVED} after {found['steps']:,} steps")


if __name__ == "__main__":
    main()
