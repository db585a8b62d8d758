"""The ``townlet`` command; each of its commands is a module of ``townlet.commands``.

Exit codes: 0 done; 1 ``doctor`` or ``bench`` found a wrong result; 2 what was asked for is wrong (message, no
traceback); 128 + n stopped by signal n after saving (130 for Ctrl-C, 143 for SIGTERM).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands import bench, compare, doctor, eval, export, memory, presets, report, serve, train, watch
from .support.signals import sigterm_unwinds

COMMANDS = (train, presets, eval, memory, report, compare, watch, export, serve, bench, doctor)
"""In the order of ``townlet --help``."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="townlet", description="Populations of recurrent Q-learning agents.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        with sigterm_unwinds():
            return int(arguments.run(arguments))
    except (ValueError, OSError, MemoryError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to say
            return 0
        print(f"townlet {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
