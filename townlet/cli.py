"""The ``townlet`` command; each of its commands is a module of ``townlet.commands``.

Exit codes:

- 0: the command is done.
- 1: ``doctor`` or ``bench`` found a wrong result.
- 2: the request cannot be met. A message says why, without a traceback.
- 128 + n: signal n stopped the command after it had saved (130 for Ctrl-C, 143 for SIGTERM).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands import bench, compare, doctor, eval, export, memory, presets, report, serve, train, watch
from .support.signals import sigterm_unwinds

COMMANDS = (train, presets, eval, memory, report, compare, watch, export, serve, bench, doctor)
"""The commands in the order of ``townlet --help``."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    about = "Train populations of recurrent Q-learning agents, evaluate them and look at them."
    parser = argparse.ArgumentParser(prog="townlet", description=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback when a command fails")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with sigterm_unwinds():
            return int(arguments.run(arguments))
    except (ValueError, OSError, MemoryError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone away
            return 0
        print(f"townlet {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
