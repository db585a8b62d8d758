"""One face for every world: a Gymnasium ``VectorEnv`` as float32 rows and action numbers.

``make_worlds`` opens any Gymnasium id; ``VectorAdapter`` flattens Box observations, one-hot encodes Discrete ones,
picks the legal-action mask out of ``info``, refuses what is not supported, and saves and restores worlds that can be.

Autoreset is NEXT_STEP: the step after an episode's end ignores its action, returns reward 0 and the first observation
of the next episode; so an episode's final observation is in the stream.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from .minigrid import SymbolicObservation

TOWN_ID = "townlet/Town-v0"
# Wrappers of gymnasium.make whose whole state is known here, so that a world inside them can be saved.
_KNOWN_WRAPPERS = {"OrderEnforcing", "PassiveEnvChecker", "TimeLimit"}


class WorldStep(NamedTuple):
    """What ``VectorAdapter.step`` returns for N environments."""

    obs: np.ndarray  # float32 [N, obs_size]
    reward: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N], true end of the episode
    truncated: np.ndarray  # bool [N], cut by a limit
    legal: np.ndarray | None  # bool [N, A], None where the world has no mask
    survival: np.ndarray | None  # float [N], ticks survived so far, None where the world does not say


class VectorAdapter:
    """N copies of one world with flat float32 observations and discrete actions.

    Args:
        env: a VectorEnv; NEXT_STEP autoreset is required.
        name: the world's id, for error messages.

    Attributes: ``num_envs``, ``obs_size``, ``n_actions``, ``name``, ``why_not_resumable`` (None when ``get_state`` and
    ``set_state`` work, else the reason in words).

    Raises:
        ValueError: the observation or action space, or the autoreset mode, is not supported.
    """

    def __init__(self, env: VectorEnv, name: str = "world") -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, "NextStep", "next_step"):
            raise ValueError(f"{name}: autoreset mode {mode!r} is not supported; expected NEXT_STEP")
        self.env, self.name, self.num_envs = env, name, env.num_envs
        self.obs_size, self._one_hot_start = _observation_size(env.single_observation_space, name)
        self.n_actions, self._action_start = _action_count(env.single_action_space, name)
        self._steps = 0
        self._singles = list(env.envs) if isinstance(env, SyncVectorEnv) else None
        self.why_not_resumable = self._find_obstacle()

    @property
    def resumable(self) -> bool:
        """Whether ``get_state`` and ``set_state`` work."""
        return self.why_not_resumable is None

    def reset(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """One new episode per environment, i from ``seeds[i]`` -> obs [N, obs_size], legal [N, A] or None."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"seeds has length {len(seeds)}; expected num_envs = {self.num_envs}")
        obs, info = self.env.reset(seed=[int(s) for s in seeds])  # type: ignore[arg-type]  # vector environments take lists
        self._steps = 0
        return self._observe(obs), self._legal(info)

    def step(self, action: np.ndarray) -> WorldStep:
        """Take action [N] (int, 0..A-1).

        Raises:
            ValueError: an observation or reward is not finite; world, environment and step are named.
        """
        action = np.asarray(action)
        if self._action_start:
            action = action + self._action_start
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        reward = np.asarray(reward, dtype=np.float32)
        if not np.isfinite(reward).all():
            raise ValueError(self._not_finite("reward", reward))
        survival = info.get("survival_time")
        return WorldStep(
            self._observe(obs),
            reward,
            np.asarray(terminated, dtype=bool),
            np.asarray(truncated, dtype=bool),
            self._legal(info),
            None if survival is None else np.asarray(survival, dtype=np.float64),
        )

    # ---- saving -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here. Raises ValueError when the world cannot be saved."""
        self._require_resumable()
        if self._singles is None:
            return {"world": self.env.get_state(), "steps": self._steps}  # type: ignore[attr-defined]
        return {
            "envs": [_single_state(e) for e in self._singles],
            "autoreset": np.array(self.env._autoreset_envs),  # type: ignore[attr-defined]
            "steps": self._steps,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, in worlds made with the same arguments."""
        self._require_resumable()
        if self._singles is None:
            self.env.set_state(state["world"])  # type: ignore[attr-defined]
        else:
            if len(state["envs"]) != self.num_envs:
                raise ValueError(f"{self.name}: state of {len(state['envs'])} environments; expected {self.num_envs}")
            self.env.reset(seed=0)  # brings wrappers into the state 'has been reset'
            for env, saved in zip(self._singles, state["envs"], strict=True):
                _restore_single(env, saved)
            self.env._autoreset_envs = np.array(state["autoreset"], dtype=bool)  # type: ignore[attr-defined]
        self._steps = int(state["steps"])

    def render(self) -> Any:
        """What the underlying VectorEnv renders. Raises ValueError when it cannot."""
        try:
            return self.env.render()
        except gymnasium.error.Error as error:
            raise ValueError(f"{self.name}: cannot be drawn: {error}") from None

    def close(self) -> None:
        """Release the worlds."""
        self.env.close()

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _observe(self, obs: np.ndarray) -> np.ndarray:
        obs = np.asarray(obs)
        if self._one_hot_start is not None:
            return np.eye(self.obs_size, dtype=np.float32)[obs.astype(np.int64) - self._one_hot_start]
        flat = obs.reshape(self.num_envs, self.obs_size).astype(np.float32, copy=False)
        if not np.isfinite(flat).all():
            raise ValueError(self._not_finite("observation", flat))
        return flat

    def _legal(self, info: dict[str, Any]) -> np.ndarray | None:
        legal = info.get("legal")
        return None if legal is None else np.asarray(legal, dtype=bool)

    def _not_finite(self, what: str, values: np.ndarray) -> str:
        bad = int(np.flatnonzero(~np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1))[0])
        return f"{self.name}: {what} of environment {bad} at step {self._steps} is not finite: {values[bad]!r}"

    def _find_obstacle(self) -> str | None:
        if self._singles is None:
            ok = all(callable(getattr(self.env, m, None)) for m in ("get_state", "set_state"))
            return None if ok else f"{self.name} offers no get_state/set_state"
        for env in self._singles[:1]:
            while isinstance(env, gymnasium.Wrapper):
                if type(env).__name__ not in _KNOWN_WRAPPERS:
                    return f"{self.name} is wrapped in {type(env).__name__}, whose state cannot be saved"
                env = env.env
            if not all(callable(getattr(env, m, None)) for m in ("get_state", "set_state")):
                return f"{self.name} offers no get_state/set_state"
        return None

    def _require_resumable(self) -> None:
        if self.why_not_resumable is not None:
            raise ValueError(self.why_not_resumable)


def _observation_size(space: Space[Any], name: str) -> tuple[int, int | None]:
    """(flat size, first value of a Discrete space or None)."""
    if isinstance(space, Discrete):
        return int(space.n), int(space.start)
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.number) and 0 not in space.shape:
        return int(np.prod(space.shape, dtype=np.int64)), None
    raise ValueError(f"{name}: observation space {space} is not supported; expected Box (numbers) or Discrete")


def _action_count(space: Space[Any], name: str) -> tuple[int, int]:
    if isinstance(space, Discrete):
        return int(space.n), int(space.start)
    kind = "continuous action space" if isinstance(space, Box) else "action space"
    raise ValueError(f"{name}: {kind} {space} is not supported; expected Discrete")


def _single_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    base = env.unwrapped
    return {
        "world": base.get_state(),  # type: ignore[attr-defined]
        # JSON keeps the generator's 128-bit integers
        "rng": json.dumps(base.np_random.bit_generator.state, default=lambda a: a.tolist()),
        "elapsed": [int(e._elapsed_steps) for e in _time_limits(env)],  # type: ignore[attr-defined]
    }


def _restore_single(env: gymnasium.Env[Any, Any], state: dict[str, Any]) -> None:
    base = env.unwrapped
    base.set_state(state["world"])  # type: ignore[attr-defined]
    base.np_random.bit_generator.state = json.loads(state["rng"])
    for limit, elapsed in zip(_time_limits(env), state["elapsed"], strict=True):
        limit._elapsed_steps = elapsed  # type: ignore[attr-defined]


def _time_limits(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    found: list[gymnasium.Env[Any, Any]] = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__name__ == "TimeLimit":
            found.append(env)
        env = env.env
    return found


def make_worlds(env_id: str, num_envs: int, **env_args: Any) -> VectorAdapter:
    """Open ``num_envs`` copies of a world.

    The Town's id gives the C++ ``TownVectorEnv``; every other Gymnasium id runs in this process, one environment after
    the other. ``popgym-...`` ids import PyPI's popgym, which registers them; ``module:Id`` imports ``module`` first.

    Raises:
        ValueError: the id is unknown, its package is not installed, or the world does not take ``env_args``.
    """
    if env_id == TOWN_ID:
        from .town import TownVectorEnv

        try:
            return VectorAdapter(TownVectorEnv(num_envs, **env_args), env_id)
        except TypeError as error:
            raise ValueError(f"{env_id}: {error}") from None
    module, _, _ = env_id.rpartition(":")
    if env_id.startswith("popgym-"):
        module = "popgym"
    wrappers: tuple[Any, ...] = ()
    if env_id.startswith(("MiniGrid-", "BabyAI-")):
        module, wrappers = "minigrid", (SymbolicObservation,)
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{env_id}: needs the package {module!r} ({error}); try: pip install {module}") from None
    try:
        env = gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
            disable_env_checker=True,
            wrappers=wrappers,
            **env_args,
        )
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"{env_id}: cannot be made with {env_args or 'no arguments'}: {error}") from None
    return VectorAdapter(env, env_id)
