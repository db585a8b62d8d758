"""``townlet watch``: show one episode in the terminal, or write it as a GIF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .common import natural, positive


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    watch = commands.add_parser(
        "watch",
        help="show one episode in the terminal, or write it as a GIF",
        description="Show one greedy episode of a trained agent in the terminal, or write it as a GIF, with the "
        "agent's Q-values and its recurrent state beside the world.",
    )
    watch.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    watch.add_argument("--gif", metavar="FILE", help="write a GIF instead of playing in the terminal")
    watch.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the episode (default: 0)")
    watch.add_argument("--member", type=natural, default=0, metavar="P", help="member that plays (default: 0)")
    watch.add_argument("--no-memory", action="store_true", help="zero the recurrent state before every step")
    watch.add_argument("--max-steps", type=positive, default=500, metavar="N", help="stop after N steps (default: 500)")
    watch.add_argument("--fps", type=float, default=8.0, metavar="X", help="frames per second (default: 8)")
    watch.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..evaluation.agent import Agent
    from ..watch import episode as watch

    agent = Agent.load(arguments.run_folder)
    if not arguments.fps > 0:
        raise ValueError(f"--fps is {arguments.fps}; expected a number above 0")
    options = {"seed": arguments.seed, "member": arguments.member, "memory": not arguments.no_memory}
    options |= {"max_steps": arguments.max_steps, "fps": arguments.fps}
    if arguments.gif:
        steps, score = watch.to_gif(agent, Path(arguments.gif), **options)
        print(f"{arguments.gif}: {steps} steps, return {score:.4g}")
    else:
        steps, score = watch.in_terminal(agent, sys.stdout, **options)
        print(f"{steps} steps, return {score:.4g}")
    return 0
