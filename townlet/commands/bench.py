"""``townlet bench``: measure this machine."""

from __future__ import annotations

import sys
from typing import Any

from .common import positive


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    bench = commands.add_parser(
        "bench",
        help="measure this machine: the operator beside its peak and torch.nn.LSTM, acting, the simulator",
        description="Checks every result first, then prints median and best times. Takes under a minute; the full "
        "comparison is benchmarks/run.py in the repository.",
    )
    bench.add_argument("--quick", action="store_true", help="fewer shapes and repeats: about ten seconds")
    bench.add_argument("--threads", type=positive, default=1, metavar="N", help="to measure with (default: 1)")
    bench.add_argument("--json", metavar="FILE", help="also write the figures there")
    bench.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..bench.problem import WrongResult
    from ..bench.short import run

    try:
        run(print, quick=arguments.quick, threads=arguments.threads, file=arguments.json)
    except WrongResult as error:
        print(f"townlet bench: WRONG RESULT: {error}", file=sys.stderr)
        return 1
    return 0
