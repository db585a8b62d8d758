"""Ids of worlds that Townlet treats specially. It imports nothing, so that the settings can read it cheaply."""

from __future__ import annotations

TOWN_ID = "townlet/Town-v0"
"""The Town's id in Gymnasium's registry."""

PETTINGZOO = "pettingzoo:"
"""The prefix of an id that names the module of a PettingZoo parallel environment."""

HOMES = {"popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Prefix of an id -> the package that registers such ids when it is imported."""
