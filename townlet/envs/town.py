"""The Town as Gymnasium environments: `TownVectorEnv` (many worlds, one C++ call per step) and `TownEnv` (one world).

The rules are in docs/town.md, the simulator in csrc/town/. Both classes take the arguments of `TownArgs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from townlet import _C
from townlet.envs import render as pictures
from townlet.envs.rules import ACTIONS, BUILDINGS, FULL_MONEY, METERS

_STATE_VERSION = 1


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name}: expected an integer in {low}..{high}, got {value!r}")
    return int(value)


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _depletion(value: Any, num_envs: int) -> list[float]:
    """A float, or one float per environment, as a list of num_envs floats."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    if array.shape not in ((), (num_envs,)) or not np.all((array >= 0.0) & (array <= 1e9)):
        raise ValueError(
            f"depletion: expected a number in 0..1e9, or {num_envs} of them (one per environment), got {value!r}"
        )
    return [float(x) for x in np.broadcast_to(array, (num_envs,))]


class ObservationLayout(NamedTuple):
    """Where things are in the flat observation vector.

    `map_shape` is (planes, rows, columns): `obs[..., map].reshape(*batch, *map_shape)` is the picture. Its planes are
    presence + off-grid, or the 14 kinds + off-grid, or (partial=False) the 14 kinds alone. The rest are slices too:
    position (2), knots (2K), meters (8, in the order of `METERS`), underfoot (15), clock (2: sin, cos), progress (1).
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
    """Arguments of the Town. Bad values raise ValueError naming the argument, what came and what was expected.

    level: "town" (14 buildings) or "hamlet" (Bed, HomeMeal, Job; hygiene, mood, social, fitness stand still).
    size: cells along an edge of the square grid.
    layout: "random" draws the buildings' cells anew in every episode, "fixed" uses the table's cells.
    random_start_hour: the clock starts at a random hour, else at 0.
    max_steps: ticks after which an episode is truncated.
    start_money: in [0, 1], 1.0 = $100; rounded to the nearest cent.
    depletion: scale of all losses; a number, or one per environment.
    temporal: interactions take several ticks and buildings have hours; False: one tick does it all, always open.
    partial: the agent sees a window around it, else the whole map.
    window: "presence" (is there a building) or "kind" (which one); None: "presence" in the town, "kind" in the hamlet.
    radius: of the window, in cells; None: 2 in the town, 1 in the hamlet.
    knots: K, observes the position also as weights of K places along each axis, between which it is interpolated: on a
        grid of K cells that is one-hot. 0 for the two numbers alone; not 1.
    reward: per tick survived, "survival" gives 1, "wellbeing" the mean of energy, satiation and health.
    random_start: energy, satiation and money are drawn at reset; a share of the episodes in [0, 1], or True for all.
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
        _choice("level", self.level, ("town", "hamlet"))
        _integer("size", self.size, 2, 256)
        _choice("layout", self.layout, ("random", "fixed"))
        buildings = len(self.kinds)
        if self.size * self.size < buildings + 1:
            raise ValueError(
                f"size: expected room for {buildings} buildings and the agent, got {self.size} "
                f"({self.size * self.size} cells)"
            )
        if self.layout == "fixed" and self.size < 8:
            raise ValueError(f"size: expected at least 8 with layout='fixed', got {self.size}")
        _integer("max_steps", self.max_steps, 1, 2**31 - 1)
        money = self.start_money
        if isinstance(money, bool) or not isinstance(money, (int, float, np.number)) or not 0.0 <= money <= 1.0:
            raise ValueError(f"start_money: expected a number in 0..1 (1 = $100), got {money!r}")
        for name in ("random_start_hour", "temporal", "partial"):
            _flag(name, getattr(self, name))
        share = self.random_start
        if not isinstance(share, (bool, np.bool_, int, float, np.number)) or not 0.0 <= share <= 1.0:
            raise ValueError(f"random_start: expected True, False or a share of the episodes in 0..1, got {share!r}")
        _choice("reward", self.reward, ("survival", "wellbeing"))
        if self.window is not None:
            _choice("window", self.window, ("presence", "kind"))
        if self.radius is not None:
            _integer("radius", self.radius, 1, 64)
        _integer("knots", self.knots, 0, 256)
        if self.knots == 1:
            raise ValueError("knots: expected 0, or at least 2, got 1")

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
        """How the flat observation is put together."""
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
            depletion=_depletion(self.depletion, num_envs),
            temporal=bool(self.temporal),
            partial=bool(self.partial),
            kinds=self.window_used == "kind",
            radius=self.radius_used,
            knots=int(self.knots),
            wellbeing=self.reward == "wellbeing",
            random_start=float(self.random_start),
        )

    def observation_space(self) -> gymnasium.spaces.Box:
        """Box of one environment's observation: everything in [0, 1] but the clock, in [-1, 1]."""
        low = np.zeros(self.observation.size, np.float32)
        low[self.observation.clock] = -1.0
        return gymnasium.spaces.Box(low, np.ones_like(low), dtype=np.float32)


class TownVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` Towns stepped by one C++ call that releases the GIL.

    Observations float32 [num_envs, obs_size] (`args.observation` tells the parts), actions integers [num_envs] in 0..5.
    `info["legal"]` bool [num_envs, 6] and `info["survival_time"]` int32 [num_envs] belong to the observation returned.
    Autoreset is NEXT_STEP: the step after an episode's last ignores the action given, returns the first observation
    of the next episode, reward 0 and no flags.

    What environment i does is a function of its seed, its actions and the arguments: not of num_envs or of i.

    `copy=True` returns arrays that are the caller's to keep; with `copy=False` every step writes into and returns the
    same arrays.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  as in the base class
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, copy: bool = True, **town_args: Any):
        self.num_envs = _integer("num_envs", num_envs, 1, 10_000_000)
        self.args = TownArgs(**town_args)
        if render_mode is not None:
            _choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.copy = _flag("copy", copy)
        self.single_observation_space = self.args.observation_space()
        self.single_action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._town = self.args.simulator(self.num_envs)
        self._seeded = False
        self._started = False
        self._last_actions = np.full(self.num_envs, -1, np.int64)  # for pictures only
        self._buffers = self._new_buffers()

    def _new_buffers(self) -> tuple[np.ndarray, ...]:
        """obs, reward, terminated, truncated, legal, survival_time."""
        n = self.num_envs
        return (
            np.empty((n, self._town.obs_size), np.float32),
            np.empty(n, np.float64),
            np.empty(n, np.bool_),
            np.empty(n, np.bool_),
            np.empty((n, len(ACTIONS)), np.bool_),
            np.empty(n, np.int32),
        )

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode everywhere; returns obs and info.

        seed: an int s gives environment i the seed s + i; a sequence gives one seed each; None goes on to the next
        episode of the seeds in use (the first time: seeds from the operating system's entropy). Seeds are in
        0..2^64-1. options: {"reset_mask": bool [num_envs]} restarts only the environments where it is true.
        """
        unknown = set(options or ()) - {"reset_mask"}
        if unknown:
            raise ValueError(f"options: expected no key but 'reset_mask', got {sorted(map(str, unknown))}")
        mask = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(
                    f"options['reset_mask']: expected bool of shape [{self.num_envs}], got {mask.dtype} {mask.shape}"
                )
            if not self._started or seed is not None:
                raise ValueError("options['reset_mask']: expected a running environment and no seed")
        if seed is not None:
            keys = self._keys(seed)
            super().reset(seed=keys[0])
            self._town.seed(keys)
            self._seeded = True
        elif not self._seeded:
            draws = self.np_random.integers(0, 2**64 - 1, self.num_envs, dtype=np.uint64)
            self._town.seed([int(k) for k in draws])
            self._seeded = True
        self._town.reset(np.ascontiguousarray(mask))
        self._started = True
        self._last_actions = np.where(mask, -1, self._last_actions)
        obs, legal = self.observe()
        survival = np.asarray(self._town.get_state()["survival"])
        return obs, {"legal": legal, "survival_time": survival}

    def _keys(self, seed: int | Sequence[int]) -> list[int]:
        top = 2**64 - 1
        if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
            _integer("seed", seed, 0, top - self.num_envs + 1)
            return [int(seed) + i for i in range(self.num_envs)]
        if isinstance(seed, str) or not isinstance(seed, (Sequence, np.ndarray)):
            raise ValueError(f"seed: expected an integer, a sequence of integers or None, got {seed!r}")
        if len(seed) != self.num_envs:
            raise ValueError(f"seed: expected {self.num_envs} seeds, one per environment, got {len(seed)}")
        return [_integer(f"seed[{i}]", s, 0, top) for i, s in enumerate(seed)]

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One tick: obs, reward float64, terminated bool, truncated bool, info."""
        if not self._started:
            raise gymnasium.error.ResetNeeded("step: expected reset() to have been called before")
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"actions: expected integers of shape [{self.num_envs}], got {chosen.dtype} {list(chosen.shape)}"
            )
        chosen = np.ascontiguousarray(chosen, np.int64)
        out = self._new_buffers() if self.copy else self._buffers
        self._town.step(chosen, *out)
        if self.render_mode is not None:
            self._last_actions = np.where(out[5] == 0, -1, chosen)
        obs, reward, terminated, truncated, legal, survival = out
        return obs, reward, terminated, truncated, {"legal": legal, "survival_time": survival}

    def get_action_meanings(self) -> list[str]:
        """Names of the actions."""
        return list(ACTIONS)

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """The current observation float32 [num_envs, obs_size] and legal mask bool [num_envs, 6]."""
        obs = np.empty((self.num_envs, self._town.obs_size), np.float32)
        legal = np.empty((self.num_envs, len(ACTIONS)), np.bool_)
        self._town.observe(obs, legal)
        return obs, legal

    def set_depletion(self, depletion: float | Sequence[float] | np.ndarray) -> None:
        """Changes the scale of all losses from the next tick on; a number, or one per environment."""
        state = self._town.get_state()
        state["depletion"] = np.array(_depletion(depletion, self.num_envs))
        self._town.set_state(state)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything a bit-exact continuation needs, as arrays with the environments along the last or only axis.

        key, episode uint64 [N] (seed; number of the next episode), meters float64 [7, N] (`METERS` without money),
        cents, x, y, hour, progress, survival int32 [N], done uint8 [N] (the next step starts a new episode),
        cells int32 [N, buildings] (y * size + x), depletion float64 [N], version int64 [1].
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("get_state: expected reset() to have been called before")
        state: dict[str, np.ndarray] = self._town.get_state()
        state["version"] = np.array([_STATE_VERSION])
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what get_state gave; the arguments of the two environments must agree."""
        if not isinstance(state, Mapping) or "version" not in state:
            raise ValueError("state: expected what get_state() returned")
        version = np.asarray(state["version"]).reshape(-1).tolist()
        if version != [_STATE_VERSION]:
            raise ValueError(f"state['version']: expected {_STATE_VERSION}, got {version}")
        self._town.set_state(dict(state))
        self._seeded = self._started = True
        self._last_actions = np.full(self.num_envs, -1, np.int64)

    def render(self) -> tuple[Any, ...] | None:
        """One picture (str for "ansi", uint8 [height, width, 3] for "rgb_array") per environment."""
        if self.render_mode is None:
            return None
        state = self.get_state()
        scenes = (pictures.scene(self.args, state, e, int(self._last_actions[e])) for e in range(self.num_envs))
        draw = pictures.ansi if self.render_mode == "ansi" else pictures.rgb_array
        return tuple(draw(scene) for scene in scenes)


class TownEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One Town as a Gymnasium environment: `gymnasium.make("townlet/Town-v0", **arguments of TownArgs)`.

    The same seed and actions give the same episodes as in `TownVectorEnv`. `info["legal"]` is a bool array [6],
    `info["survival_time"]` an int. After an episode's end `reset` must be called.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **town_args: Any):
        self._envs = TownVectorEnv(1, render_mode=render_mode, **town_args)
        self.args = self._envs.args
        self.render_mode = render_mode
        self.observation_space = self._envs.single_observation_space
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; with a seed, the first one of that seed."""
        if options:
            raise ValueError(f"options: expected none, got {sorted(map(str, options))}")
        if seed is not None:
            _integer("seed", seed, 0, 2**64 - 1)
        super().reset(seed=seed)
        if seed is None and not self._envs._seeded:
            seed = int(self.np_random.integers(0, 2**64 - 1, dtype=np.uint64))
        obs, info = self._envs.reset(seed=seed)
        self._over = False
        return obs[0], self._single(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One tick."""
        if self._over:
            raise gymnasium.error.ResetNeeded("step: the episode is over or none was started; call reset()")
        if np.ndim(action) != 0:
            raise ValueError(f"action: expected one integer in 0..5, got shape {list(np.shape(action))}")
        obs, reward, terminated, truncated, info = self._envs.step(np.asarray(action).reshape(1))
        self._over = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._single(info)

    @staticmethod
    def _single(info: dict[str, Any]) -> dict[str, Any]:
        return {"legal": info["legal"][0], "survival_time": int(info["survival_time"][0])}

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """The current observation [obs_size] and legal mask [6], e.g. after set_state."""
        obs, legal = self._envs.observe()
        return obs[0], legal[0]

    def get_state(self) -> dict[str, np.ndarray]:
        """As `TownVectorEnv.get_state`, for one environment."""
        return self._envs.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """As `TownVectorEnv.set_state`. A state saved at an episode's end still needs reset()."""
        self._envs.set_state(state)
        self._over = bool(np.asarray(state["done"])[0])

    def render(self) -> Any:
        """A str ("ansi") or a uint8 array [height, width, 3] ("rgb_array")."""
        frames = self._envs.render()
        return None if frames is None else frames[0]
