"""The Town: its arguments, its environments and its rules."""

from __future__ import annotations

from .args import ObservationLayout, TownArgs
from .env import TownEnv, TownVectorEnv
from .rules import ACTIONS, BUILDINGS, METERS

__all__ = ["ACTIONS", "BUILDINGS", "METERS", "ObservationLayout", "TownArgs", "TownEnv", "TownVectorEnv"]
