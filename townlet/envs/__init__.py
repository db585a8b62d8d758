"""Environments: the Town, its yardsticks, its pictures. Importing this package registers `townlet/Town-v0`.

The Town's own names load on first use, since settings ask this package for nothing but ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

from .ids import TOWN_ID

if TYPE_CHECKING:
    from .town import ACTIONS, BUILDINGS, METERS, ObservationLayout, TownArgs, TownEnv, TownVectorEnv

__all__ = ["ACTIONS", "BUILDINGS", "METERS", "ObservationLayout", "TownArgs", "TownEnv", "TownVectorEnv"]

if TOWN_ID not in gymnasium.registry:
    gymnasium.register(
        id=TOWN_ID,
        entry_point=f"{__name__}.town.env:TownEnv",
        vector_entry_point=f"{__name__}.town.env:TownVectorEnv",
    )


if not TYPE_CHECKING:  # else every name would be one, to a type checker

    def __getattr__(name: str) -> Any:
        """Public names load on first use."""
        if name in __all__:
            from . import town

            return getattr(town, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
