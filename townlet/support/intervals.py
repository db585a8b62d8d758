"""Means of independent values, and the means' 95% intervals by Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Two-sided 95% quantiles of Student's t for 1..30 degrees of freedom. Beyond those, `t95` takes the normal's.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def t95(n: int) -> float:
    """The two-sided 95% quantile of Student's t for the mean of ``n`` values; NaN for fewer than two."""
    return math.nan if n < 2 else _T95[n - 2] if n - 1 <= len(_T95) else 1.96


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values, and the half-width of its 95% interval by Student's t.

    Args:
        values: independent values, in any shape.

    Returns:
        The mean and the half-width; the half-width of a single value is NaN.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    n = values.size
    if n < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(t95(n) * values.std(ddof=1) / math.sqrt(n))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval by Student's t.

    Attributes:
        mean: the mean of the values.
        low: the lower end of the interval; NaN for a single value.
        high: the upper end of the interval; NaN for a single value.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Interval:
        """The interval over independent values."""
        mean, half = mean_interval(values)
        return cls(mean, mean - half, mean + half)

    def to_dict(self) -> dict[str, float | None]:
        """The three numbers by name, for a JSON file; None where there is no number."""
        return {k: None if math.isnan(v) else v for k, v in vars(self).items()}
