"""``townlet bench``: measure this machine."""

from __future__ import annotations

import sys
from typing import Any

from .common import positive


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    bench = commands.add_parser(
        "bench",
        help="measure the speed of the operator, of acting and of the simulator on this machine",
        description="Measure the operator beside the processor's peak and torch.nn.LSTM, then acting and the "
        "simulator. Every result is checked before it is timed. The command prints median and best times and takes "
        "under a minute. The full comparison is benchmarks/run.py in the repository.",
    )
    bench.add_argument("--quick", action="store_true", help="measure fewer shapes, less often: about ten seconds")
    bench.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="number of threads to measure with (default: 1)"
    )
    bench.add_argument("--json", metavar="FILE", help="also write the figures into this file")
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
