"""Whether two trees of plain values, arrays and tensors are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TIMES = ("seconds", "elapsed")


def same(a: Any, b: Any) -> bool:
    """Equality in type, shape and every number; times do not count, and NaN in arrays equals NaN."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, np.ndarray):
        is_alike = isinstance(b, np.ndarray) and a.dtype == b.dtype
        return is_alike and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return (type(a) is type(b) and a == b) or (isinstance(a, np.generic) and a.item() == b)
