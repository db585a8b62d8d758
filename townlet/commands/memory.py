"""``townlet memory``: does the trained agent use its memory?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .common import natural, positive, say


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    memory = commands.add_parser(
        "memory",
        help="measure whether a trained agent uses its memory",
        description="Measure whether a trained agent uses its memory. The command plays the same episodes with the "
        "recurrent state left alone, cleared every k steps, swapped with another episode's every k steps, and taken "
        "from the most similar episode. It also takes the gradient of Q with respect to past observations. It prints "
        "one sentence and writes memory.json and memory.png into the run folder.",
    )
    memory.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    memory.add_argument(
        "--episodes", type=positive, default=128, metavar="N", help="episodes per member (default: 128)"
    )
    memory.add_argument("--seed", type=natural, metavar="N", help="seed of the episodes (default: the run's seed)")
    memory.add_argument("--member", type=natural, metavar="P", help="member to measure (default: all)")
    memory.add_argument("--json", metavar="FILE", help="write the figures into this file instead of RUN/memory.json")
    memory.add_argument("--picture", metavar="FILE", help="draw the picture into this file instead of RUN/memory.png")
    memory.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..evaluation.agent import Agent
    from ..evaluation.memory import probe
    from ..reports import plots
    from ..runs.folder import write_json

    path = Path(arguments.run_folder)
    agent = Agent.load(path)
    found = probe(agent, arguments.episodes, arguments.seed, arguments.member, say)
    folder = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    write_json(arguments.json or folder / "memory.json", found.to_dict())
    plots.memory_use(found, arguments.picture or folder / "memory.png")
    print(found.sentence)
    return 0
