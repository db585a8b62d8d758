"""The Town's names and numbers as Python sees them, read from the C++ tables (csrc/town/rules.h)."""

from __future__ import annotations

from typing import Any

from ... import _C

METERS = ("energy", "hygiene", "satiation", "money", "mood", "social", "health", "fitness")
ACTIONS = ("up", "down", "left", "right", "interact", "wait")
FULL_MONEY = 10_000  # cents in a full money meter ($100)

# One dict per building: name, cell (x, y), ticks, price (cents per tick), hours (from, to), hamlet (whether it has the
# building), and the effects `tick` and `complete`, which are dicts by meter with money as "cents".
BUILDINGS: tuple[dict[str, Any], ...] = tuple(_C.town_buildings())

# Losses per tick: `passive` and `moving` are in the order of METERS without money, and without health's passive loss,
# which depends on fitness. `cascades` are (source, target, k) with indices into that order. A source acts below
# `cascade_below`.
LOSSES: dict[str, Any] = _C.town_losses()


def is_open(kind: int, hour: int, temporal: bool) -> bool:
    """Whether building `kind` can be used at `hour`. Opening hours are half-open and may cross midnight."""
    opens, closes = BUILDINGS[kind]["hours"]
    return not temporal or (hour - opens) % 24 < ((closes - opens) % 24 or 24)
