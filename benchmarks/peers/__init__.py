"""What else a user might run, beyond plain PyTorch (townlet/bench/peers.py). Some need packages that are not torch.

`optional(name)` gives a peer's module, or None and a reason where its package is not installed.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(name: str) -> tuple[ModuleType | None, str]:
    """(module peers.<name>, "") or (None, why not)."""
    try:
        return importlib.import_module(f"peers.{name}"), ""
    except ImportError as error:
        return None, f"not installed ({error.name or error})"
