"""``townlet doctor``: what was built, what runs, and whether the compiled operators agree with their float64 twins."""

from __future__ import annotations

from .checks import CPU, TOLERANCE, Check, td_checks
from .examine import examine

__all__ = ["CPU", "TOLERANCE", "Check", "examine", "td_checks"]
