"""Environments: the Town, and the adapter before every other world. Importing this package registers the Town.

The Town's own names load on first use, so that registering it does not load the simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

from ..support.ids import TOWN_ID

if TYPE_CHECKING:
    from .town import ACTIONS, BUILDINGS, METERS, ObservationLayout, TownArgs, TownEnv, TownVectorEnv

__all__ = ["ACTIONS", "BUILDINGS", "METERS", "ObservationLayout", "TownArgs", "TownEnv", "TownVectorEnv"]

if TOWN_ID not in gymnasium.registry:
    gymnasium.register(
        id=TOWN_ID,
        entry_point=f"{__name__}.town.env:TownEnv",
        vector_entry_point=f"{__name__}.town.env:TownVectorEnv",
    )


if not TYPE_CHECKING:  # a type checker would take every name for one of the module

    def __getattr__(name: str) -> Any:
        """A public name of the Town, loaded on first use; AttributeError for any other."""
        if name in __all__:
            from . import town

            return getattr(town, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
