"""The report of ``townlet doctor``: what was built, what runs, and whether the compiled operators are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from .._build import cuda_kernel_in_use, describe, kernel_in_use
from ..support import devices
from .checks import operator_checks


def examine(out: Callable[[str], None], device: str = "cpu") -> int:
    """Print the report.

    Args:
        out: receives its lines.
        device: "cpu", "cuda" or "cuda:N". For a GPU its operators are compared with their twins on the CPU, the whole
            update with the same update on the CPU, both as it stands and recorded as a CUDA graph, and a short
            benchmark follows.

    Returns:
        0 when everything was compared and agrees, else 1.

    Raises:
        ValueError: there is no such device. What was built has been described by then.
    """
    for name, value in describe().items():
        out(f"{name:<26}{value}")
    out("")
    where = devices.resolve(device)
    found = operator_checks(where)
    if where.type == "cuda":
        from . import cuda

        cuda.need_kernels()
        found = itertools.chain(found, cuda.checks(where))
    out(f"operator on {where}, kernel against float64 twin: largest error relative to the largest value")
    worst, sick, refused = 0.0, [], []
    for name, error, allowed in found:
        if isinstance(error, str):
            out(f"  {name:<58}NOT RUN: {error}")
            refused.append(name)
            continue
        good = error <= allowed  # False for NaN
        out(f"  {name:<58}{error:.1e}  {'ok' if good else f'WRONG (allowed {allowed:.0e})'}")
        worst = max(worst, error)
        if not good:
            sick.append(name)
    out("")
    if sick:
        out(f"WRONG: {', '.join(sick)}")
    if refused:
        out(
            f"NOT RUN: {', '.join(refused)}; the form that TOWNLET_CUDA_UNROLL asks for does not fit there, "
            "and without that variable everything runs"
        )
    if sick or refused:
        return 1
    kernel = cuda_kernel_in_use(where) if where.type == "cuda" else kernel_in_use()
    out(f"all operators agree with their twins (worst {worst:.1e}); kernel in use: {kernel}")
    if where.type == "cuda":
        cuda.measure(where, out)
    return 0
