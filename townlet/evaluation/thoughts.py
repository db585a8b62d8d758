"""What goes on inside an agent at one step: its Q-values, its state and what that changes, and the map seen so far.

`Thinker` acts and takes notes (`Thought`). `SeenMap` reads the Town's observations. `townlet.watch.panel` draws both.
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
"""What `SeenMap` holds besides buildings' indices: never seen, free ground, a building of unknown kind, no cell."""


@dataclass(frozen=True)
class Thought:
    """One step of one agent with A actions and H units.

    Attributes:
        obs: the observation, float32 ``[obs_size]``.
        legal: the legal actions, bool ``[A]``; None allows all.
        action: the greedy action.
        q: the Q-values, float32 ``[A]``.
        q_cleared: the Q-values had the state been cleared just before this observation, float32 ``[A]``.
        cleared_action: the greedy action under ``q_cleared``.
        state: the LSTM's output after this observation, float32 ``[H]``.
        change: how ``state`` differs from the step before, float32 ``[H]``.
        norms: the norm of the state at every step so far.
        effects: the largest difference between ``q`` and ``q_cleared`` over the legal actions, at every step so far.
    """

    obs: np.ndarray
    legal: np.ndarray | None
    action: int
    q: np.ndarray
    q_cleared: np.ndarray
    cleared_action: int
    state: np.ndarray
    change: np.ndarray
    norms: list[float]
    effects: list[float]

    @property
    def most_changed(self) -> list[int]:
        """The units that changed most in this step, at most five, the largest change first."""
        order = np.argsort(-np.abs(self.change), kind="stable")[:5]
        return [int(u) for u in order if self.change[u] != 0.0]

    def allowed(self, action: int) -> bool:
        """Whether the action is legal. Where no action is, all of them count as legal."""
        return self.legal is None or bool(self.legal[action]) or not self.legal.any()


class Thinker:
    """A greedy agent in one environment that acts as `GreedyActor` does and tells what it thinks.

    Args:
        network: the network that acts.
        params: name -> ``[1, ...]``, the parameters of one member.
        memory: False zeroes the state before every step.
    """

    def __init__(self, network: RecurrentNetwork, params: dict[str, Tensor], *, memory: bool) -> None:
        self.actor = GreedyActor(network, params, 1, memory=memory)
        self.norms: list[float] = []
        self.effects: list[float] = []

    def step(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> Thought:
        """Choose an action and advance the state once.

        Args:
            obs: the observation, float32 ``[1, obs_size]``.
            legal: the legal actions, bool ``[1, A]``; None allows all.
            reset: whether the observation is the first of its episode, bool ``[1]``.
        """
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
    """What a perfect memory would know of the Town's map, from the observations of one episode alone.

    Attributes:
        args: the Town's arguments.
        cells: a building's index, or UNSEEN, EMPTY or SOMETHING, for each cell of the map: int ``[size, size]``.
        window: what is in sight now, with OFF_GRID beyond the edge: int ``[side, side]``.
        position: the agent's cell, (x, y).
    """

    args: TownArgs
    cells: np.ndarray = field(init=False)
    window: np.ndarray = field(init=False)
    position: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        self.cells = np.full((self.args.size, self.args.size), UNSEEN)

    def add(self, obs: np.ndarray) -> None:
        """Take in one observation, float32 ``[obs_size]``."""
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
        """The share of the map's cells that were seen so far, 0 to 1."""
        return float((self.cells != UNSEEN).mean())


def labels(names: Sequence[str]) -> list[str]:
    """The actions' names as they are shown: those of the Town with their arrows, numbers as "action 0"."""
    if tuple(names) == ACTIONS:
        return [f"{arrow} {name}" for arrow, name in zip(ARROWS, ACTIONS, strict=True)]
    return [f"action {name}" if name.isdigit() else name[:14] for name in names]
