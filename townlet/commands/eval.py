"""``townlet eval``: play unseen episodes with a run's agents and print the table of results."""

from __future__ import annotations

from typing import Any

from .common import natural, positive


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    evaluation = commands.add_parser(
        "eval",
        help="play unseen episodes with a run's agents and print the results",
        description="Play the same unseen episodes with a run's agents, with the agents without their memory and with "
        "the yardstick policies, and print a table of the results.",
    )
    evaluation.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    evaluation.add_argument(
        "--episodes", type=positive, default=256, metavar="N", help="episodes that each policy plays (default: 256)"
    )
    evaluation.add_argument("--seed", type=natural, metavar="N", help="seed of the episodes (default: the run's seed)")
    evaluation.add_argument(
        "--picture", metavar="FILE", help="also draw how long each policy survives into this file (Town only)"
    )
    evaluation.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..evaluation.agent import Agent
    from ..evaluation.table import compare

    agent = Agent.load(arguments.run_folder)
    seed = agent.config.seed if arguments.seed is None else arguments.seed
    if arguments.picture and not agent.config.is_town:
        raise ValueError(f"--picture is given for a run in {agent.config.env}; expected a run in the Town")
    report = compare(agent, arguments.episodes, seed)
    done = f"{agent.config.env} after {agent.env_steps:,} steps per member"
    print(f"{done}: {report.score_name}, {arguments.episodes} episodes")
    print(report.text())
    if arguments.picture:
        from ..reports import plots

        plots.survival(report, arguments.picture)
    return 0
