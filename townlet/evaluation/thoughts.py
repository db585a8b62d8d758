"""What goes on inside an agent at one step: Q-values, the state and what it changes, what of the map was seen so far.

`Thinker` acts and takes the notes (`Thought`), `SeenMap` reads the Town's observations; `panel` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..envs.town.args import TownArgs
from ..envs.town.render import ARROWS
from ..envs.town.rules import ACTIONS, BUILDINGS
from ..learning.networks import RecurrentNetwork
from .play import GreedyActor

UNSEEN, EMPTY, SOMETHING, OFF_GRID = -1, -2, -3, -4
"""What `SeenMap` holds beside buildings' indices: never seen, free ground, a building of unknown kind, no cell."""


@dataclass(frozen=True)
class Thought:
    """One step of one agent; A actions, H units."""

    obs: np.ndarray  # [obs_size]
    legal: np.ndarray | None  # [A]
    action: int
    q: np.ndarray  # [A]
    q_cleared: np.ndarray  # [A], had the state been cleared just before this observation
    cleared_action: int
    state: np.ndarray  # [H], the LSTM's output after this observation
    change: np.ndarray  # [H], against the step before
    norms: list[float]  # of the state, all steps so far
    effects: list[float]  # largest difference between q and q_cleared over the legal actions, all steps so far

    @property
    def most_changed(self) -> list[int]:
        """The units that changed most in this step, at most five, the largest change first."""
        order = np.argsort(-np.abs(self.change), kind="stable")[:5]
        return [int(u) for u in order if self.change[u] != 0.0]

    def allowed(self, action: int) -> bool:
        """Whether the action is legal; where none is, all are."""
        return self.legal is None or bool(self.legal[action]) or not self.legal.any()


class Thinker:
    """A greedy agent in one environment that says what it thinks; acts as `GreedyActor` does."""

    def __init__(self, network: RecurrentNetwork, params: dict[str, Tensor], *, memory: bool) -> None:
        self.actor = GreedyActor(network, params, 1, memory=memory)
        self.norms: list[float] = []
        self.effects: list[float] = []

    def step(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> Thought:
        """Chooses an action for obs [1, obs_size] and advances the state once."""
        before = self.actor.h
        cleared = self.actor.peek(obs, legal, np.ones(1, dtype=bool))
        out = self.actor.step(obs, legal, reset)
        q, q_cleared = out.q[0, 0].cpu().numpy(), cleared.q[0, 0].cpu().numpy()
        possible = np.ones(len(q), dtype=bool) if legal is None or not legal[0].any() else legal[0]
        self.norms.append(float(out.h.norm()))
        self.effects.append(float(np.abs(q - q_cleared)[possible].max()))
        return Thought(
            obs=obs[0],
            legal=None if legal is None else legal[0],
            action=int(out.action),
            q=q,
            q_cleared=q_cleared,
            cleared_action=int(cleared.action),
            state=out.h[0, 0].cpu().numpy(),
            change=(out.h - before)[0, 0].cpu().numpy(),
            norms=list(self.norms),
            effects=list(self.effects),
        )


@dataclass
class SeenMap:
    """What a perfect memory would know of the Town's map, from the observations of one episode alone."""

    args: TownArgs
    cells: np.ndarray = field(init=False)  # int [size, size]: a building's index, or UNSEEN, EMPTY, SOMETHING
    window: np.ndarray = field(init=False)  # int [side, side]: what is in sight now, OFF_GRID beyond the edge
    position: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        self.cells = np.full((self.args.size, self.args.size), UNSEEN)

    def add(self, obs: np.ndarray) -> None:
        """Takes in one observation [obs_size]."""
        layout, size = self.args.observation, self.args.size
        planes = obs[layout.map].reshape(layout.map_shape)
        x, y = (round(float(v) * (size - 1)) for v in obs[layout.position])
        self.position = (x, y)
        kinds = planes[: len(BUILDINGS)] if len(planes) >= len(BUILDINGS) else None
        if kinds is None:
            self.window = np.where(planes[0] > 0, SOMETHING, EMPTY)
        else:
            self.window = np.where(kinds.any(axis=0), kinds.argmax(axis=0), EMPTY)
        left, top = 0, 0
        if self.args.partial:
            self.window[planes[-1] > 0] = OFF_GRID
            left, top = x - self.args.radius_used, y - self.args.radius_used
        underfoot = int(obs[layout.underfoot].argmax())
        for (row, column), what in np.ndenumerate(self.window):
            if what != OFF_GRID:
                known = self.cells[top + row, left + column]
                self.cells[top + row, left + column] = known if what == SOMETHING and known >= 0 else what
        if underfoot < len(BUILDINGS):
            self.cells[y, x] = underfoot

    @property
    def share(self) -> float:
        """Of the cells seen so far."""
        return float((self.cells != UNSEEN).mean())


def labels(names: Sequence[str]) -> list[str]:
    """The actions' names as they are shown: the Town's with their arrows, numbers as "action 0"."""
    if tuple(names) == ACTIONS:
        return [f"{arrow} {name}" for arrow, name in zip(ARROWS, ACTIONS, strict=True)]
    return [f"action {name}" if name.isdigit() else name[:14] for name in names]
