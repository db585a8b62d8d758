"""What several commands share."""

from __future__ import annotations

import argparse
import sys


def positive(text: str) -> int:
    """Parse an argument that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"the value is {value}; expected at least 1")
    return value


def natural(text: str) -> int:
    """Parse an argument that must be at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"the value is {value}; expected at least 0")
    return value


def say(text: str) -> None:
    """Print a line for the person at the terminal. It goes to standard error, since standard output is for results."""
    print(text, file=sys.stderr, flush=True)
