"""``townlet presets``: the named sets of settings, with the source of each number."""

from __future__ import annotations

from typing import Any

from ..settings.presets import PRESETS, table, table_elsewhere

_ABOUT = {
    "fast": "the defaults (townlet train --help), tuned here for the Town",
    "drqn": "deep recurrent Q-learning, Hausknecht & Stone 2015",
    "r2d2": "recurrent replay distributed DQN, Kapturowski et al. 2019",
}


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    presets = commands.add_parser(
        "presets", help="show the presets that `townlet train --preset` takes, and where each number comes from"
    )
    presets.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help=f"preset to show, one of {', '.join(PRESETS)}; without a name, all are listed",
    )
    presets.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    if arguments.name is None:
        print("\n".join(f"{name:<6}{_ABOUT[name]}" for name in PRESETS))
        return 0
    settings = table(arguments.name)
    print(f"{arguments.name}: {_ABOUT[arguments.name]}; what is not listed keeps its default\n")
    if PRESETS[arguments.name]:
        print(f"{settings}\n")
    print(f"in worlds other than the Town, unless given or listed above:\n\n{table_elsewhere()}")
    return 0
