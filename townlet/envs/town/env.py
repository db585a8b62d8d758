"""The Town as Gymnasium environments: `TownVectorEnv` (many worlds, one C++ call per step) and `TownEnv` (one world).

Both classes take the arguments of `TownArgs`. The rules are in docs/guides/town.md, and the simulator is in csrc/town/.
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
    """N Towns that one C++ call steps, with the GIL released.

    Observations are ``[N, obs_size]`` float32, whose parts `args.observation` tells. Actions are integers ``[N]`` in
    0..5. `info["legal"]` ``[N, 6]`` bool and `info["survival_time"]` ``[N]`` int32 belong to the observation returned.
    Autoreset is NEXT_STEP: the step after an episode's last one ignores its action, and returns the first observation
    of the next episode, reward 0 and no flags.

    What environment i does depends on its seed, its actions and the arguments, but not on N or on i.

    Args:
        num_envs: N, the number of Towns.
        render_mode: what `render` returns: "ansi", "rgb_array", or None for nothing.
        copy: with True every step returns arrays that the caller may keep; with False every step writes into the same
            arrays and returns them.
        town_args: the arguments of `TownArgs`.

    Raises:
        ValueError: an argument is wrong; the message names it and what was expected.
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
        self.seeded = False  # whether the environments have their seeds
        self._started = False
        self._last_actions = np.full(self.num_envs, -1, np.int64)  # only pictures need them
        self._buffers = self._new_buffers()

    def _new_buffers(self) -> tuple[np.ndarray, ...]:
        """New arrays for a step: obs, reward, terminated, truncated, legal, survival_time."""
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
        """Start a new episode in every environment.

        Args:
            seed: an int s gives environment i the seed s + i, and a sequence gives one seed to each. None goes on to
                the next episode of the seeds in use; the first time, seeds come from the operating system's entropy.
                Seeds lie in 0..2^64-1.
            options: None, or a dict whose "reset_mask", ``[N]`` bool, is true where an environment is to restart.

        Returns:
            The observations ``[N, obs_size]`` float32, and info with "legal" and "survival_time".

        Raises:
            ValueError: an argument is wrong; the message names it.
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
            self.seeded = True
        elif not self.seeded:
            draws = self.np_random.integers(0, 2**64 - 1, self.num_envs, dtype=np.uint64)
            self._town.seed([int(k) for k in draws])
            self.seeded = True
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
        """Take one tick in every environment.

        Args:
            actions: ``[N]`` integers in 0..5.

        Returns:
            obs ``[N, obs_size]`` float32, reward ``[N]`` float64, terminated and truncated ``[N]`` bool, and info with
            "legal" ``[N, 6]`` bool and "survival_time" ``[N]`` int32.

        Raises:
            ValueError: the actions have another shape or type, or one lies outside 0..5.
            gymnasium.error.ResetNeeded: `reset` was not called before.
        """
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
        """The names of the actions."""
        return list(ACTIONS)

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """The current observation ``[N, obs_size]`` float32 and the legal actions ``[N, 6]`` bool."""
        obs = np.empty((self.num_envs, self._town.obs_size), np.float32)
        legal = np.empty((self.num_envs, len(ACTIONS)), np.bool_)
        self._town.observe(obs, legal)
        return obs, legal

    def set_depletion(self, depletion: float | Sequence[float] | np.ndarray) -> None:
        """Change the factor on all losses from the next tick on.

        Args:
            depletion: a number in 0..1e9, or one per environment.

        Raises:
            ValueError: the value is something else.
        """
        state = self._town.get_state()
        state["depletion"] = np.array(depletions(depletion, self.num_envs))
        self._town.set_state(state)

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that a bit-exact continuation needs.

        Returns:
            Arrays by name: ``key`` (the seed) and ``episode`` (the number of the next one) ``[N]`` uint64; ``meters``
            ``[7, N]`` float64, in the order of `METERS` without money; ``cents``, ``x``, ``y``, ``hour``, ``progress``
            and ``survival`` ``[N]`` int32; ``done`` ``[N]`` uint8, 1 where the next step starts a new episode;
            ``cells`` ``[N, buildings]`` int32, each y * size + x; ``depletion`` ``[N]`` float64; ``version`` ``[1]``
            int64.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was not called before.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("get_state was called before reset; expected reset() first")
        state: dict[str, np.ndarray] = self._town.get_state()
        state["version"] = np.array([_STATE_VERSION])
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state that `get_state` returned.

        Raises:
            ValueError: the state is damaged, or comes from an environment with other arguments. Nothing has been
                changed.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            raise ValueError("state holds no 'version'; expected what get_state() returned")
        version = np.asarray(state["version"]).reshape(-1).tolist()
        if version != [_STATE_VERSION]:
            raise ValueError(f"state['version'] is {version}; expected {_STATE_VERSION}")
        self._town.set_state(dict(state))
        self.seeded = self._started = True
        self._last_actions = np.full(self.num_envs, -1, np.int64)

    def render(self) -> tuple[Any, ...] | None:
        """One picture per environment: a str for "ansi", ``[height, width, 3]`` uint8 for "rgb_array"."""
        if self.render_mode is None:
            return None
        state = self.get_state()
        scenes = (scene(self.args, state, e, int(self._last_actions[e])) for e in range(self.num_envs))
        draw = ansi if self.render_mode == "ansi" else rgb_array
        return tuple(draw(each) for each in scenes)


class TownEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One Town as a Gymnasium environment, which `gymnasium.make("townlet/Town-v0", ...)` also gives.

    The same seed and actions give the same episodes as in `TownVectorEnv`. `info["legal"]` is ``[6]`` bool, and
    `info["survival_time"]` is an int. After an episode's end `reset` must be called.

    Args:
        render_mode: what `render` returns: "ansi", "rgb_array", or None for nothing.
        town_args: the arguments of `TownArgs`.

    Raises:
        ValueError: an argument is wrong; the message names it and what was expected.
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
        """Start a new episode: with a seed, the first one of that seed.

        Args:
            seed: an int in 0..2^64-1, or None to go on with the seed in use.
            options: None or empty.

        Returns:
            The observation ``[obs_size]`` float32, and info with "legal" and "survival_time".

        Raises:
            ValueError: an argument is wrong; the message names it.
        """
        if options:
            raise ValueError(f"options holds {sorted(map(str, options))}; expected none")
        if seed is not None:
            integer("seed", seed, 0, 2**64 - 1)
        super().reset(seed=seed)
        if seed is None and not self._envs.seeded:
            seed = int(self.np_random.integers(0, 2**64 - 1, dtype=np.uint64))
        obs, info = self._envs.reset(seed=seed)
        self._over = False
        return obs[0], self._single(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one tick.

        Args:
            action: an integer in 0..5.

        Returns:
            obs ``[obs_size]`` float32, reward, terminated, truncated and info.

        Raises:
            ValueError: the action is something else.
            gymnasium.error.ResetNeeded: the episode is over, or none was started.
        """
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
        """The current observation ``[obs_size]`` float32 and the legal actions ``[6]`` bool, as after `set_state`."""
        obs, legal = self._envs.observe()
        return obs[0], legal[0]

    def get_state(self) -> dict[str, np.ndarray]:
        """The state that `TownVectorEnv.get_state` returns, for one environment."""
        return self._envs.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state, as `TownVectorEnv.set_state` does. After a state of an episode's end, call `reset`."""
        self._envs.set_state(state)
        self._over = bool(np.asarray(state["done"])[0])

    def render(self) -> Any:
        """A picture: a str for "ansi", ``[height, width, 3]`` uint8 for "rgb_array"."""
        frames = self._envs.render()
        return None if frames is None else frames[0]
