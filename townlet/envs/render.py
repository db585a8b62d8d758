"""Pictures of the Town."""

from __future__ import annotations

from typing import Any


def scene(args: Any, state: Any, env: int, last_action: int) -> Any:
    raise NotImplementedError


def ansi(scene: Any) -> str:
    raise NotImplementedError


def rgb_array(scene: Any) -> Any:
    raise NotImplementedError
