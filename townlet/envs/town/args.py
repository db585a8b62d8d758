"""Checks the arguments of the Town, and derives from them the simulator, the spaces and the observation's layout.

The rules are in docs/guides/town.md, and the simulator is in csrc/town/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from ... import _C
from .rules import BUILDINGS, FULL_MONEY, METERS


def integer(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int; ValueError unless it is an integer in ``low``..``high``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; expected an integer in {low}..{high}")
    return int(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value``; ValueError unless it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
    return value


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool; ValueError unless it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def depletions(value: Any, num_envs: int) -> list[float]:
    """One number, or one per environment, as a list of ``num_envs`` floats; ValueError for anything else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    if array.shape not in ((), (num_envs,)) or not np.all((array >= 0.0) & (array <= 1e9)):
        raise ValueError(
            f"depletion is {value!r}; expected a number in 0..1e9, or {num_envs} of them (one per environment)"
        )
    return [float(x) for x in np.broadcast_to(array, (num_envs,))]


class ObservationLayout(NamedTuple):
    """Where things are in the flat observation vector.

    ``obs[..., map].reshape(*batch, *map_shape)`` is the map. Its planes are presence and off-grid, or the 14 kinds and
    off-grid, or the 14 kinds alone where ``partial`` is False.

    Attributes:
        map_shape: the planes, rows and columns of the map.
        map: where the map is, a plane at a time.
        position: where the 2 numbers of the position are.
        knots: where the 2K weights of places are.
        meters: where the 8 meters are, in the order of `METERS`.
        underfoot: where the 15 one-hot numbers are for the building that the agent stands on; the last stands for none.
        clock: where the sine and the cosine of the hour are.
        progress: where the number is that says how far the interaction has come.
        size: how many numbers the vector has.
    """

    map_shape: tuple[int, int, int]
    map: slice
    position: slice
    knots: slice
    meters: slice
    underfoot: slice
    clock: slice
    progress: slice
    size: int


@dataclass(frozen=True, kw_only=True)
class TownArgs:
    """Arguments of the Town.

    Args:
        level: "town" has 14 buildings. "hamlet" has three (Bed, HomeMeal, Job), and hygiene, mood, social and fitness
            stand still in it.
        size: cells along an edge of the square grid.
        layout: "random" draws the buildings' cells anew in every episode, "fixed" uses the table's cells.
        random_start_hour: whether the clock starts at a random hour; with False it starts at 0.
        max_steps: ticks after which an episode is truncated.
        start_money: money at the start in [0, 1], where 1 stands for $100; it is rounded to the nearest cent.
        depletion: factor on all losses; a number, or one per environment.
        temporal: whether interactions take several ticks and buildings have hours; with False one tick does it all,
            and buildings are always open.
        partial: whether the agent sees only a window around it; with False it sees the whole map.
        window: what the window shows of a cell: "presence" (whether it holds a building) or "kind" (which one). None
            stands for "presence" in the town and "kind" in the hamlet.
        radius: how many cells the window reaches in every direction; None stands for 2 in the town and 1 in the hamlet.
        knots: K. The position is also observed as the weights of K places along each axis, between which it is
            interpolated; on a grid of K cells this is one-hot. 0 leaves only the two numbers; 1 is refused.
        reward: what the agent gets for every tick that it survives: "survival" gives 1, "wellbeing" gives the mean of
            energy, satiation and health.
        random_start: the share of episodes, in [0, 1], in which energy, satiation and money are drawn at reset; True
            stands for all.

    Raises:
        ValueError: a value is wrong; the message names the argument, what came and what was expected.
    """

    level: str = "town"
    size: int = 8
    layout: str = "random"
    random_start_hour: bool = True
    max_steps: int = 500
    start_money: float = 0.2
    depletion: float | Sequence[float] | np.ndarray = 1.0
    temporal: bool = True
    partial: bool = True
    window: str | None = None
    radius: int | None = None
    knots: int = 0
    reward: str = "survival"
    random_start: bool | float = False

    def __post_init__(self) -> None:
        choice("level", self.level, ("town", "hamlet"))
        integer("size", self.size, 2, 256)
        choice("layout", self.layout, ("random", "fixed"))
        buildings = len(self.kinds)
        if self.size * self.size < buildings + 1:
            raise ValueError(
                f"size is {self.size}, which makes {self.size * self.size} cells; expected room for {buildings} "
                "buildings and the agent"
            )
        if self.layout == "fixed" and self.size < 8:
            raise ValueError(f"size is {self.size}; expected at least 8 with layout='fixed'")
        integer("max_steps", self.max_steps, 1, 2**31 - 1)
        money = self.start_money
        if isinstance(money, bool) or not isinstance(money, (int, float, np.number)) or not 0.0 <= money <= 1.0:
            raise ValueError(f"start_money is {money!r}; expected a number in 0..1 (1 stands for $100)")
        for name in ("random_start_hour", "temporal", "partial"):
            flag(name, getattr(self, name))
        share = self.random_start
        if not isinstance(share, (bool, np.bool_, int, float, np.number)) or not 0.0 <= share <= 1.0:
            raise ValueError(f"random_start is {share!r}; expected True, False or a share of the episodes in 0..1")
        choice("reward", self.reward, ("survival", "wellbeing"))
        if self.window is not None:
            choice("window", self.window, ("presence", "kind"))
        if self.radius is not None:
            integer("radius", self.radius, 1, 64)
        integer("knots", self.knots, 0, 256)
        if self.knots == 1:
            raise ValueError("knots is 1; expected 0, or at least 2")

    @property
    def kinds(self) -> tuple[int, ...]:
        """The level's buildings as indices of `BUILDINGS`."""
        return tuple(i for i, b in enumerate(BUILDINGS) if self.level == "town" or b["hamlet"])

    @property
    def window_used(self) -> str:
        """`window`, with the level's default filled in."""
        return self.window or ("presence" if self.level == "town" else "kind")

    @property
    def radius_used(self) -> int:
        """`radius`, with the level's default filled in."""
        return self.radius if self.radius is not None else (2 if self.level == "town" else 1)

    @property
    def observation(self) -> ObservationLayout:
        """The layout of the flat observation."""
        side = 2 * self.radius_used + 1 if self.partial else self.size
        planes = len(BUILDINGS) if not self.partial else 2 if self.window_used == "presence" else len(BUILDINGS) + 1
        edges = np.cumsum([0, planes * side * side, 2, 2 * self.knots, len(METERS), len(BUILDINGS) + 1, 2, 1]).tolist()
        the_map, position, knots, meters, underfoot, clock, progress = (slice(a, b) for a, b in pairwise(edges))
        shape = (planes, side, side)
        return ObservationLayout(shape, the_map, position, knots, meters, underfoot, clock, progress, size=edges[-1])

    def simulator(self, num_envs: int) -> _C.Town:
        """The C++ simulator with these arguments."""
        return _C.Town(
            num_envs=num_envs,
            hamlet=self.level == "hamlet",
            size=int(self.size),
            random_layout=self.layout == "random",
            random_hour=bool(self.random_start_hour),
            max_steps=int(self.max_steps),
            start_cents=math.floor(float(self.start_money) * FULL_MONEY + 0.5),
            depletion=depletions(self.depletion, num_envs),
            temporal=bool(self.temporal),
            partial=bool(self.partial),
            kinds=self.window_used == "kind",
            radius=self.radius_used,
            knots=int(self.knots),
            wellbeing=self.reward == "wellbeing",
            random_start=float(self.random_start),
        )

    def observation_space(self) -> gymnasium.spaces.Box:
        """The Box of one environment's observation. The clock lies in [-1, 1], everything else in [0, 1]."""
        low = np.zeros(self.observation.size, np.float32)
        low[self.observation.clock] = -1.0
        return gymnasium.spaces.Box(low, np.ones_like(low), dtype=np.float32)
