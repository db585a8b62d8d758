"""The Town's names and numbers as Python sees them, read from the C++ tables (csrc/town/rules.h)."""

from __future__ import annotations

from typing import Any

from ... import _C

METERS = ("energy", "hygiene", "satiation", "money", "mood", "social", "health", "fitness")
ACTIONS = ("up", "down", "left", "right", "interact", "wait")
FULL_MONEY = 10_000  # cents in a full money meter ($100)

# One dict per building: name, cell (x, y), ticks, price (cents per tick), hours (from, to), hamlet, and the effects
# `tick` and `complete` as dicts by meter, with money as "cents".
BUILDINGS: tuple[dict[str, Any], ...] = tuple(_C.town_buildings())

# passive, moving: losses per tick, in the order of METERS without money (health's passive loss, which depends on
# fitness, apart); cascades: (source, target, k) as indices into that order; cascade_below.
LOSSES: dict[str, Any] = _C.town_losses()


def is_open(kind: int, hour: int, temporal: bool) -> bool:
    """Whether building `kind` can be used at `hour`: hours are half-open and wrap midnight."""
    opens, closes = BUILDINGS[kind]["hours"]
    return not temporal or (hour - opens) % 24 < ((closes - opens) % 24 or 24)
