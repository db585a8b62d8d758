"""Ids of worlds that Townlet knows something about. Nothing is imported here, so that settings may read them."""

from __future__ import annotations

TOWN_ID = "townlet/Town-v0"
"""The Town, in Gymnasium's registry."""

PETTINGZOO = "pettingzoo:"
"""What stands before the module of a PettingZoo parallel environment."""

HOMES = {"popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""How ids begin -> the package that registers them when it is imported."""
