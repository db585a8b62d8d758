"""Load a run, evaluate its agents on unseen episodes with and without memory, and ask whether they use their memory.

Run it: python examples/evaluate_checkpoint.py [RUN], where RUN is a run folder or a checkpoint. Without RUN the script
first trains the agent of custom_env.py into a temporary folder (a few seconds on one core).
"""

import sys
import tempfile
from pathlib import Path

from custom_env import SETTINGS

from townlet import Config, Trainer
from townlet.evaluate import mean_interval
from townlet.memory import probe
from townlet.report import Agent


def evaluate(run: str | Path) -> str:
    """Print the scores and the sentence of the memory probe; returns the probe's verdict."""
    agent = Agent.load(run)
    print(f"{agent.config.env} after {agent.env_steps:,} steps, {agent.config.members} member(s)")
    for memory in (True, False):
        result = agent.evaluate(episodes=100, seed=0, memory=memory)
        mean, half = mean_interval(result.score)
        print(f"  {'with' if memory else 'without'} memory: {result.score_name} {mean:.2f} +- {half:.2f}")
    found = probe(agent, episodes=100)
    print(found.sentence)
    return found.verdict


def main() -> None:
    """Evaluate the given run, or train a small one and evaluate that."""
    if len(sys.argv) > 1:
        evaluate(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        Trainer(Config(**SETTINGS, run_dir=str(run))).train()
        assert evaluate(run) == "used", "this world cannot be solved without memory"


if __name__ == "__main__":
    main()
