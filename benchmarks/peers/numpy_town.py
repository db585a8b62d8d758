"""The Town as a careful NumPy user would write it: arrays over E environments, without a loop over them.

The numbers of the rules come from the package's tables. The dynamics (docs/guides/town.md) are written anew, and
`check` compares them with the C++ simulator step by step. It supports only windows (partial=True), interactions over
several ticks (temporal=True) and random layouts. Episodes are drawn from NumPy's generator, so the maps differ from the
simulator's for the same seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from townlet.bench.problem import WrongResult
from townlet.envs import TownVectorEnv
from townlet.envs.town import TownArgs
from townlet.envs.town.rules import ACTIONS, BUILDINGS, FULL_MONEY, LOSSES, METERS, is_open

KINDS, NOWHERE, OFF_GRID = len(BUILDINGS), len(BUILDINGS), len(BUILDINGS) + 1
NAMES = [name for name in METERS if name != "money"]
ENERGY, SATIATION, HEALTH, FITNESS = (NAMES.index(n) for n in ("energy", "satiation", "health", "fitness"))
INTERACT, WAIT = ACTIONS.index("interact"), ACTIONS.index("wait")


def _effects(part: str) -> tuple[np.ndarray, np.ndarray]:
    """The effects of "tick" or "complete": on the meters ``[KINDS, 7]``, and in cents ``[KINDS]``."""
    meters = np.array([[b[part][name] for name in NAMES] for b in BUILDINGS])
    return meters, np.array([b[part]["cents"] for b in BUILDINGS])


class NumpyTown:
    """E Towns with NEXT_STEP autoreset.

    ``reset()`` returns obs and legal, ``step(actions)`` returns obs, reward, terminated, truncated and legal: obs
    float32 ``[E, obs_size]``, reward float64 ``[E]``, terminated and truncated bool ``[E]``, legal bool ``[E, 6]``.
    """

    def __init__(self, num_envs: int, *, seed: int = 0, **arguments: Any):
        args = TownArgs(**arguments)
        if not (args.partial and args.temporal and args.layout == "random"):
            raise ValueError(f"arguments are {arguments}; expected partial, temporal and a random layout")
        self.args, self.E = args, num_envs
        self.random = np.random.default_rng(seed)
        self.size, self.radius = args.size, args.radius_used
        self.obs_size = args.observation.size
        self.kinds = np.array(args.kinds)
        self.start_cents = math.floor(args.start_money * FULL_MONEY + 0.5)
        self.depletion = float(args.depletion)  # type: ignore[arg-type]
        passive, moving = np.array(LOSSES["passive"]), np.array(LOSSES["moving"])
        if args.level == "hamlet":
            still = [NAMES.index(n) for n in ("hygiene", "mood", "social", "fitness")]
            passive[still] = moving[still] = 0.0
        self.idle_loss = (self.depletion * passive)[:, None]
        self.walk_loss = (self.depletion * (passive + moving))[:, None]
        self.tick, self.tick_cents = _effects("tick")
        self.complete, self.complete_cents = _effects("complete")
        self.price = np.array([b["price"] for b in BUILDINGS])
        self.ticks = np.array([b["ticks"] for b in BUILDINGS] + [1])
        self.open = np.array([[is_open(k, hour, True) for hour in range(24)] for k in range(KINDS)] + [[False] * 24])
        turn = 2 * np.pi * np.arange(24) / 24
        self.clock = np.stack([np.sin(turn), np.cos(turn)], 1).astype(np.float32)
        self.underfoot = np.eye(KINDS + 1, dtype=np.float32)
        side = np.arange(-self.radius, self.radius + 1)
        self.pitch = self.size + 2 * self.radius
        self.window = (side[:, None] * self.pitch + side).ravel()

        E = num_envs
        self.row = np.arange(E)
        self.meters = np.ones((len(NAMES), E))
        self.cents, self.x, self.y, self.hour, self.progress, self.survival = np.zeros((6, E), np.int64)
        self.cells = np.zeros((E, len(self.kinds)), np.int64)
        self.map = np.full((E, self.pitch * self.pitch), OFF_GRID)
        self.done = np.ones(E, bool)

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin a new episode in every environment; returns obs and legal."""
        self._begin(self.row)
        return self._observe()

    def _at(self) -> np.ndarray:
        """The index of each agent's cell in its row of ``map``."""
        return (self.y + self.radius) * self.pitch + self.x + self.radius

    def _begin(self, e: np.ndarray) -> None:
        n, cells = len(e), self.size * self.size
        places = self.random.random((n, cells)).argsort(1)[:, : len(self.kinds) + 1]
        ys, xs = np.divmod(places, self.size)
        free = np.full((self.pitch, self.pitch), OFF_GRID)
        free[self.radius : self.radius + self.size, self.radius : self.radius + self.size] = NOWHERE
        grid = np.tile(free.ravel(), (n, 1))
        spots = (ys[:, :-1] + self.radius) * self.pitch + xs[:, :-1] + self.radius
        np.put_along_axis(grid, spots, np.broadcast_to(self.kinds, spots.shape), 1)
        self.map[e], self.cells[e] = grid, places[:, :-1]
        self.x[e], self.y[e] = xs[:, -1], ys[:, -1]
        self.meters[:, e] = 1.0
        self.cents[e] = self.start_cents
        if self.args.random_start:
            drawn = e[self.random.random(n) < self.args.random_start]
            n_drawn = len(drawn)
            self.meters[ENERGY, drawn] = 0.3 + 0.7 * self.random.random(n_drawn)
            self.meters[SATIATION, drawn] = 0.2 + 0.8 * self.random.random(n_drawn)
            self.cents[drawn] = np.floor((0.05 + 0.45 * self.random.random(n_drawn)) * FULL_MONEY + 0.5)
        self.hour[e] = self.random.integers(0, 24, n) if self.args.random_start_hour else 0
        self.progress[e] = self.survival[e] = 0
        self.done[e] = False

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take one tick in every environment. Where the episode is over, the next one begins instead."""
        fresh = self.done.copy()
        m = self.meters
        # 1. the action
        dx = (actions == 3).astype(np.int64) - (actions == 2)
        dy = (actions == 1).astype(np.int64) - (actions == 0)
        x, y = self.x + dx, self.y + dy
        moved = (actions < INTERACT) & (x >= 0) & (x < self.size) & (y >= 0) & (y < self.size)
        self.x, self.y = np.where(moved, x, self.x), np.where(moved, y, self.y)
        self.progress[moved] = 0
        self._interact(np.flatnonzero(actions == INTERACT))
        # 2. losses
        health_loss = self.depletion * (0.001 * (0.5 + 2.5 * (1.0 - m[FITNESS])))
        m -= np.where(moved, self.walk_loss, self.idle_loss)
        m[HEALTH] -= health_loss
        # 3. cascades
        below = LOSSES["cascade_below"]
        for source, target, k in LOSSES["cascades"]:
            level = m[source]
            if level.min() < below:
                loss = self.depletion * k * (below - np.maximum(level, 0.0)) / below
                m[target] -= np.where(level < below, loss, 0.0)
        # 4. clamp
        np.clip(m, 0.0, 1.0, out=m)
        np.minimum(self.cents, FULL_MONEY, out=self.cents)
        # 5. death, reward, clock
        terminated = ((m[ENERGY] <= 0.0) | (m[HEALTH] <= 0.0)) & ~fresh
        self.survival += ~terminated
        if self.args.reward == "wellbeing":
            reward = (m[ENERGY] + m[SATIATION] + m[HEALTH]) / 3.0
        else:
            reward = np.ones(self.E)
        truncated = ~terminated & (self.survival >= self.args.max_steps) & ~fresh
        reward[terminated | fresh] = 0.0
        self.hour = (self.hour + 1) % 24
        self.done = terminated | truncated
        if fresh.any():
            self._begin(np.flatnonzero(fresh))
        obs, legal = self._observe()
        return obs, reward, terminated, truncated, legal

    def _interact(self, e: np.ndarray) -> None:
        kind = self.map[e, self._at()[e]]
        there = self.open[kind, self.hour[e]]
        e, kind = e[there], kind[there]
        able = self.cents[e] >= self.price[kind]
        e, kind = e[able], kind[able]
        self.cents[e] += self.tick_cents[kind] - self.price[kind]
        self.meters[:, e] += self.tick[kind].T
        self.progress[e] += 1
        last = self.progress[e] == self.ticks[kind]
        e, kind = e[last], kind[last]
        self.cents[e] += self.complete_cents[kind]
        self.meters[:, e] += self.complete[kind].T
        self.progress[e] = 0

    def _observe(self) -> tuple[np.ndarray, np.ndarray]:
        layout, E, cells = self.args.observation, self.E, len(self.window)
        obs = np.zeros((E, self.obs_size), np.float32)
        at = self._at()
        codes = self.map[self.row[:, None], at[:, None] + self.window]
        if self.args.window_used == "kind":
            e, cell = np.nonzero(codes < KINDS)
            obs[e, codes[e, cell] * cells + cell] = 1.0
        else:
            obs[:, :cells] = codes < KINDS
        planes = layout.map_shape[0]
        obs[:, (planes - 1) * cells : planes * cells] = codes == OFF_GRID
        obs[:, layout.position.start] = self.x / (self.size - 1)
        obs[:, layout.position.start + 1] = self.y / (self.size - 1)
        knots = self.args.knots
        for i, axis in enumerate((self.x, self.y)):
            start, place = layout.knots.start + i * knots, axis * (knots - 1) / (self.size - 1)
            obs[:, start : start + knots] = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(knots)))
        money = METERS.index("money")
        obs[:, layout.meters.start : layout.meters.start + money] = self.meters[:money].T
        obs[:, layout.meters.start + money] = self.cents / FULL_MONEY
        obs[:, layout.meters.start + money + 1 : layout.meters.stop] = self.meters[money:].T
        kind = self.map[self.row, at]
        obs[:, layout.underfoot] = self.underfoot[kind]
        obs[:, layout.clock] = self.clock[self.hour]
        obs[:, layout.progress.start] = self.progress / self.ticks[kind]
        legal = np.ones((E, len(ACTIONS)), bool)
        legal[:, 0], legal[:, 1] = self.y > 0, self.y < self.size - 1
        legal[:, 2], legal[:, 3] = self.x > 0, self.x < self.size - 1
        legal[:, INTERACT] = self.open[kind, self.hour]
        return obs, legal

    def state(self) -> dict[str, np.ndarray]:
        """The state in the form of `TownVectorEnv.get_state`, without what concerns seeds."""
        narrow = {n: getattr(self, n).astype(np.int32) for n in ("cents", "x", "y", "hour", "progress", "survival")}
        cells = self.cells.astype(np.int32)
        return narrow | {"meters": self.meters.copy(), "cells": cells, "done": self.done.astype(np.uint8)}


def check(num_envs: int = 64, steps: int = 600, **arguments: Any) -> int:
    """Compare NumpyTown with the simulator on the same episodes and actions.

    The simulator is put into NumpyTown's state whenever an episode begins. Observations, rewards, ends and legal
    actions have to be equal, bit for bit.

    Returns:
        The number of episodes that ended.

    Raises:
        WrongResult: something differs. The message names it and the step.
    """
    town, twin = NumpyTown(num_envs, **arguments), TownVectorEnv(num_envs, **arguments)
    twin.reset(seed=0)

    def same(t: int, rows: np.ndarray, **pairs: tuple[np.ndarray, np.ndarray]) -> None:
        for name, (a, b) in pairs.items():
            if not np.array_equal(a[rows], b[rows]):
                raise WrongResult(f"NumpyTown: {name} differs from the simulator's at step {t}")

    everyone, ended = np.ones(num_envs, bool), 0
    obs, legal = town.reset()
    actions = np.random.default_rng(1)
    begun = everyone
    for t in range(steps):
        if begun.any():
            twin.set_state({**twin.get_state(), **town.state()})
            theirs, may = twin.observe()
            same(t, everyone, obs=(obs, theirs), legal=(legal, may))
        # mostly legal actions, so that interactions are completed
        draw = actions.random((num_envs, len(ACTIONS))) + 2.0 * legal
        draw[:, INTERACT] += legal[:, INTERACT] * 0.5
        action = np.where(actions.random(num_envs) < 0.1, actions.integers(0, 6, num_envs), draw.argmax(1))
        begun = town.done.copy()
        obs, reward, terminated, truncated, legal = town.step(action)
        theirs, their_reward, dead, cut, info = twin.step(action)
        pairs = {"obs": (obs, theirs), "reward": (reward, their_reward), "terminated": (terminated, dead)}
        same(t, ~begun, **pairs, truncated=(truncated, cut), legal=(legal, info["legal"]))
        ended += int(terminated.sum() + truncated.sum())
    return ended
