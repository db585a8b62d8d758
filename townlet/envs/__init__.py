"""Environments: the Town, its yardsticks, its pictures. Importing this package registers `townlet/Town-v0`."""

from __future__ import annotations

import gymnasium

from townlet.envs.rules import ACTIONS, BUILDINGS, METERS
from townlet.envs.town import ObservationLayout, TownArgs, TownEnv, TownVectorEnv

__all__ = ["ACTIONS", "BUILDINGS", "METERS", "ObservationLayout", "TownArgs", "TownEnv", "TownVectorEnv"]

TOWN_ID = "townlet/Town-v0"

if TOWN_ID not in gymnasium.registry:
    gymnasium.register(
        id=TOWN_ID,
        entry_point="townlet.envs.town:TownEnv",
        vector_entry_point="townlet.envs.town:TownVectorEnv",
    )
