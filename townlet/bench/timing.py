"""Times of several candidates, taken in turns so that whatever else the machine does affects all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_LONG = 0.05  # a call of at least so many seconds needs no other one before it to warm the caches up


class Timing(NamedTuple):
    """The seconds that a call takes: the median and the minimum of some samples."""

    median: float
    minimum: float
    samples: int


def interleave(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 15, sample: float = 0.02, budget: float = 60.0
) -> dict[str, Timing]:
    """Time every candidate once per round. Each round begins with another candidate.

    Calls are warmed up first, and short ones once more before each sample. Python's garbage collector runs only between
    rounds.

    Args:
        calls: name -> what to time. Results are thrown away.
        rounds: samples of each candidate.
        sample: seconds that a sample should last at least. Quick calls are repeated within one.
        budget: seconds for all of it, about. Rounds are left out to keep to it, but three are always measured.

    Returns:
        Name -> seconds per call.
    """
    inner, once = {}, {}
    for name, call in calls.items():
        call()
        begun = time.perf_counter()
        call()
        took = time.perf_counter() - begun
        if took < _LONG:  # the second call may still have been slow
            begun = time.perf_counter()
            call()
            took = min(took, time.perf_counter() - begun)
        inner[name] = max(1, min(10_000, round(sample / max(took, 1e-9))))
        once[name] = took
    round_seconds = sum(once[n] * (inner[n] + (once[n] < _LONG)) for n in calls)
    rounds = min(rounds, max(3, int(budget / max(round_seconds, 1e-9))))

    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for r in range(rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                call, n = calls[name], inner[name]
                if once[name] < _LONG:
                    call()
                begun = time.perf_counter()
                for _ in range(n):
                    call()
                times[name].append((time.perf_counter() - begun) / n)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(statistics.median(t), min(t), len(t)) for name, t in times.items()}
