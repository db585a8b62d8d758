"""Numbers as a person wants to read them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """A number in 4 significant digits: with k from 1e4, M from 1e6 and G from 1e9; a dash where it is not finite."""
    if not math.isfinite(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def interval(low: float | None, high: float | None, unknown: str = "-") -> str:
    """The two ends of an interval in words; ``unknown`` where an end is None or not finite."""
    if low is None or high is None or not math.isfinite(low + high):
        return unknown
    return f"{number(low)} to {number(high)}"


def duration(seconds: float) -> str:
    """A time span in seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """A time span as hours:minutes:seconds."""
    if seconds == math.inf:
        return "unknown time"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
