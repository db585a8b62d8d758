"""Environments: the Town, its yardsticks, its pictures. Importing this package registers `townlet/Town-v0`.

Gymnasium is imported with the first name that needs it, so that settings, which only ask for ids, start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .registration import register_town

if TYPE_CHECKING:
    from .town import ACTIONS, BUILDINGS, METERS, ObservationLayout, TownArgs, TownEnv, TownVectorEnv

__all__ = ["ACTIONS", "BUILDINGS", "METERS", "ObservationLayout", "TownArgs", "TownEnv", "TownVectorEnv"]

register_town()


if not TYPE_CHECKING:  # else every name would be one, to a type checker

    def __getattr__(name: str) -> Any:
        """Public names load on first use."""
        if name in __all__:
            from . import town

            return getattr(town, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
