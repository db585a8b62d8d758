"""What else a user might run, besides plain PyTorch (townlet/bench/peers.py). Some of it needs further packages.

`optional(name)` gives a peer's module, or None and a reason where the package that it needs is not installed.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(name: str) -> tuple[ModuleType | None, str]:
    """Import the peer called ``name``.

    Returns:
        The module and "", or None and why it cannot be imported.
    """
    try:
        return importlib.import_module(f"peers.{name}"), ""
    except ImportError as error:
        return None, f"not installed ({error.name or error})"
