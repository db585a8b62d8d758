"""The Town as Gymnasium environments: `TownVectorEnv` (many worlds, one C++ call per step) and `TownEnv` (one world).

Both classes take the arguments of `TownArgs`; the rules are in docs/guides/town.md, the simulator in csrc/town/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from .args import TownArgs, choice, depletions, flag, integer
from .render import ansi, rgb_array, scene
from .rules import ACTIONS

_STATE_VERSION = 1


class TownVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` Towns stepped by one C++ call that releases the GIL.

    Observations are float32 [num_envs, obs_size] (`args.observation` tells the parts), actions are integers [num_envs]
    in 0..5. `info["legal"]` bool [num_envs, 6] and `info["survival_time"]` int32 [num_envs] belong to the observation
    returned. Autoreset is NEXT_STEP: the step after an episode's last one ignores the action given and returns the
    first observation of the next episode, reward 0 and no flags.

    What environment i does is a function of its seed, its actions and the arguments, not of num_envs or of i.

    Args:
        num_envs: how many.
        render_mode: "ansi" or "rgb_array", what `render` returns; None for nothing.
        copy: with True every step returns arrays that are the caller's to keep; with False every step writes into and
            returns the same arrays.
        town_args: the arguments of `TownArgs`.

    Raises:
        ValueError: an argument is wrong; it is named, with what was expected.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  as in the base class
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, copy: bool = True, **town_args: Any):
        self.num_envs = integer("num_envs", num_envs, 1, 10_000_000)
        self.args = TownArgs(**town_args)
        if render_mode is not None:
            choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.copy = flag("copy", copy)
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

        Args:
            seed: an int s gives environment i the seed s + i; a sequence gives one seed each; None goes on to the next
                episode of the seeds in use (the first time, to seeds from the operating system's entropy). Seeds lie
                in 0..2^64-1.
            options: {"reset_mask": bool [num_envs]} restarts only the environments where it is true.

        Raises:
            ValueError: an argument is wrong.
        """
        unknown = set(options or ()) - {"reset_mask"}
        if unknown:
            raise ValueError(f"options holds {sorted(map(str, unknown))}; expected no key but 'reset_mask'")
        mask = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(
                    f"options['reset_mask'] is {mask.dtype} of shape {list(mask.shape)}; expected bool of shape "
                    f"[{self.num_envs}]"
                )
            if not self._started or seed is not None:
                raise ValueError(
                    "options['reset_mask'] is given at the first reset or with a seed; expected a running environment "
                    "and no seed"
                )
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
            integer("seed", seed, 0, top - self.num_envs + 1)
            return [int(seed) + i for i in range(self.num_envs)]
        if isinstance(seed, str) or not isinstance(seed, (Sequence, np.ndarray)):
            raise ValueError(f"seed is {seed!r}; expected an integer, a sequence of integers or None")
        if len(seed) != self.num_envs:
            raise ValueError(f"seed holds {len(seed)} seeds; expected {self.num_envs}, one per environment")
        return [integer(f"seed[{i}]", s, 0, top) for i, s in enumerate(seed)]

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One tick: obs, reward float64, terminated bool, truncated bool, info."""
        if not self._started:
            raise gymnasium.error.ResetNeeded("step was called before reset; expected reset() first")
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"actions is {chosen.dtype} of shape {list(chosen.shape)}; expected integers of shape [{self.num_envs}]"
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
        state["depletion"] = np.array(depletions(depletion, self.num_envs))
        self._town.set_state(state)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything a bit-exact continuation needs, as arrays with the environments along the last or only axis.

        key, episode uint64 [N] (seed; number of the next episode), meters float64 [7, N] (`METERS` without money),
        cents, x, y, hour, progress, survival int32 [N], done uint8 [N] (the next step starts a new episode),
        cells int32 [N, buildings] (y * size + x), depletion float64 [N], version int64 [1].
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("get_state was called before reset; expected reset() first")
        state: dict[str, np.ndarray] = self._town.get_state()
        state["version"] = np.array([_STATE_VERSION])
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what get_state gave.

        Raises:
            ValueError: the state is of an environment with other arguments, or damaged; nothing has been changed.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            raise ValueError("state holds no 'version'; expected what get_state() returned")
        version = np.asarray(state["version"]).reshape(-1).tolist()
        if version != [_STATE_VERSION]:
            raise ValueError(f"state['version'] is {version}; expected {_STATE_VERSION}")
        self._town.set_state(dict(state))
        self._seeded = self._started = True
        self._last_actions = np.full(self.num_envs, -1, np.int64)

    def render(self) -> tuple[Any, ...] | None:
        """One picture (str for "ansi", uint8 [height, width, 3] for "rgb_array") per environment."""
        if self.render_mode is None:
            return None
        state = self.get_state()
        scenes = (scene(self.args, state, e, int(self._last_actions[e])) for e in range(self.num_envs))
        draw = ansi if self.render_mode == "ansi" else rgb_array
        return tuple(draw(each) for each in scenes)


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
            raise ValueError(f"options holds {sorted(map(str, options))}; expected none")
        if seed is not None:
            integer("seed", seed, 0, 2**64 - 1)
        super().reset(seed=seed)
        if seed is None and not self._envs._seeded:
            seed = int(self.np_random.integers(0, 2**64 - 1, dtype=np.uint64))
        obs, info = self._envs.reset(seed=seed)
        self._over = False
        return obs[0], self._single(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One tick."""
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over or none was started; expected reset() before step")
        if np.ndim(action) != 0:
            raise ValueError(f"action has shape {list(np.shape(action))}; expected one integer in 0..5")
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
