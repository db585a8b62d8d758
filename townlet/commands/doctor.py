"""``townlet doctor``: describe the build and check the compiled operators."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    doctor = commands.add_parser(
        "doctor",
        help="describe the build and check the compiled operators",
        description="Describe the build and the machine, then compare every compiled operator with its twin in "
        "float64. With --device cuda the command also checks the whole update on the GPU and measures it briefly.",
    )
    doctor.add_argument(
        "--device", default="cpu", metavar="NAME", help="device to check: cpu, cuda or cuda:N (default: cpu)"
    )
    doctor.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..doctor import examine

    return examine(print, arguments.device)
