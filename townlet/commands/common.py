"""What several commands share."""

from __future__ import annotations

import argparse
import sys


def positive(text: str) -> int:
    """Type of an argument that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"the value is {value}; expected at least 1")
    return value


def natural(text: str) -> int:
    """Type of an argument that is at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"the value is {value}; expected at least 0")
    return value


def say(text: str) -> None:
    """A line for the person at the terminal; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)
