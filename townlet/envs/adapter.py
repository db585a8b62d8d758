"""One interface for every world: a Gymnasium ``VectorEnv`` as float32 rows and action numbers.

``VectorAdapter`` turns observations into rows and numbers into actions (`spaces`) and picks the legal-action mask out
of ``info``. Where it is asked to, it adds the last action and the last reward to the rows. It refuses what is not
supported, and it saves and restores the worlds that can be saved. `make` opens worlds by their ids.

An episode's final observation is always handed out, since a truncated episode's bootstrap reads it. How depends on the
world's autoreset mode:

    NEXT_STEP  It is an observation like any other. The step after it ignores its action and returns reward 0 and the
               first observation of the next episode.
    SAME_STEP  It comes apart from the others (``WorldStep.final_obs``), since the same step already shows the first
               observation of the next episode.
    DISABLED   It comes apart too, since the adapter resets at once what ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import EnumType
from typing import Any, NamedTuple, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from .faults import Guard, WorldError, raised
from .spaces import ActionNumbers, ObservationRows, Part

# The wrappers of a single environment whose whole state is known here. A world inside them can be saved.
_KNOWN_WRAPPERS = {"Guard", "OrderEnforcing", "PassiveEnvChecker", "TimeLimit"}


class Savable(Protocol):
    """A world whose state can be saved and restored."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class WorldStep(NamedTuple):
    """What ``VectorAdapter.step`` returns for N environments, K of which ended an episode and began another at once."""

    obs: np.ndarray  # float32 [N, obs_size]
    reward: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N], true end of the episode
    truncated: np.ndarray  # bool [N], cut by a limit
    legal: np.ndarray | None  # bool [N, A], None where the world has no mask
    survival: np.ndarray | None  # float64 [N], ticks survived so far, None where the world does not say
    first: np.ndarray  # bool [N], whether obs is the first of an episode
    final_obs: np.ndarray | None = None  # float32 [K, obs_size], of the episodes that ended, where obs is past them
    final_legal: np.ndarray | None = None  # bool [K, A]
    idle: np.ndarray | None = None  # bool [N], where nobody acts and nothing is to be learned (see `pettingzoo`)

    @property
    def over(self) -> np.ndarray:
        """Where this step ended an episode, ``[N]`` bool."""
        return self.terminated | self.truncated


class VectorAdapter:
    """N copies of one world with flat float32 observations and numbered actions.

    Args:
        env: a VectorEnv whose ``metadata["autoreset_mode"]`` names its autoreset, and whose ``reset`` takes a list of
            seeds.
        name: the world's id, for error messages.

    Attributes:
        env: the VectorEnv.
        name: the world's id.
        num_envs: N, the number of environments.
        obs_size: the length of an observation's row.
        n_actions: A, the number of actions.
        layout: the `Part` of each thing in a row.
        notices: lines that a person should read.
        why_not_resumable: None where ``get_state`` and ``set_state`` work, else the reason in words.

    Raises:
        ValueError: the observation or action space, or the autoreset mode, is not supported.
    """

    def __init__(self, env: VectorEnv, name: str = "world") -> None:
        self.env, self.name, self.num_envs = env, name, env.num_envs
        self._mode = _autoreset_mode(env, name)
        self._rows = ObservationRows(env.single_observation_space, name)
        self._actions = ActionNumbers(env.single_action_space, name)
        self.obs_size, self.n_actions = self._rows.size, self._actions.n
        self.layout: tuple[Part, ...] = self._rows.parts
        self.notices = [f"{name}: {part} is text and is left out" for part in self._rows.dropped]
        self._fed_back: tuple[Part, ...] = ()
        self._steps = 0
        self._over = np.zeros(self.num_envs, dtype=bool)  # NEXT_STEP: the coming step only resets
        self._masked: bool | None = None  # whether the world has masks of legal actions, as its first info tells
        self._singles: list[gymnasium.Env[Any, Any]] | None = None
        if isinstance(env, SyncVectorEnv):
            env.envs = [Guard(single, i) for i, single in enumerate(env.envs)]
            self._singles = list(env.envs)
        self.why_not_resumable = self._find_obstacle()

    def feed_back(self, *, action: bool, reward: bool) -> None:
        """Append the last action (one-hot) and the last reward (as the world gave it) to every observation.

        Both are zero in an episode's first observation. Call this at most once, before ``reset``.

        Args:
            action: whether to append the last action.
            reward: whether to append the last reward.
        """
        added = [Part(("last action",), "one-hot", Discrete(self.n_actions), self.obs_size, self.n_actions)] * action
        self.obs_size += self.n_actions * action
        added += [Part(("last reward",), "numbers", Box(-np.inf, np.inf, ()), self.obs_size, 1)] * reward
        self.obs_size += reward
        self._fed_back = tuple(added)
        self.layout += self._fed_back

    @property
    def action_names(self) -> list[str]:
        """The names of the actions, where the world gives them as Atari or MiniGrid do, else their numbers."""
        base: Any = self.env if self._singles is None else self._singles[0].unwrapped
        meanings, actions = getattr(base, "get_action_meanings", None), getattr(base, "actions", None)
        names = list(meanings()) if callable(meanings) else []
        if isinstance(actions, EnumType):
            names = [str(name) for name in actions.__members__]
        return names if len(names) == self.n_actions else [str(a) for a in range(self.n_actions)]

    @property
    def resumable(self) -> bool:
        """Whether ``get_state`` and ``set_state`` work."""
        return self.why_not_resumable is None

    def reset(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin a new episode in every environment.

        Args:
            seeds: one seed per environment.

        Returns:
            The observations ``[N, obs_size]`` float32, and the legal actions ``[N, A]`` bool, or None where the world
            has no mask.

        Raises:
            ValueError: the number of seeds is another one, or as ``step`` has it.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"seeds has length {len(seeds)}; expected num_envs = {self.num_envs}")
        self._steps = 0
        obs, info = self._ask(self.env.reset, seed=[int(s) for s in seeds])
        self._over = np.zeros(self.num_envs, dtype=bool)
        self._masked = None
        return self._extended(self._observe(obs)), self._legal(info)

    def step(self, action: np.ndarray) -> WorldStep:
        """Take one step in every environment.

        Args:
            action: ``[N]`` int, in 0..A-1.

        Returns:
            What came back from the worlds.

        Raises:
            ValueError: an environment raised an error, or what came back is not finite or has another shape or type
                than the spaces say. The message names world, environment and step.
        """
        action = np.asarray(action)
        self._steps += 1
        obs, reward, terminated, truncated, info = self._ask(self.env.step, self._actions(action))
        reward = self._column("reward", reward, np.float32)
        terminated, truncated = self._column("terminated", terminated, bool), self._column("truncated", truncated, bool)
        if not np.isfinite(reward).all():
            raise self._not_finite("reward", reward)
        rows, legal, survival = self._observe(obs), self._legal(info), _survival(info)
        ended, final_obs, final_legal, idle = terminated | truncated, None, None, None
        if self._mode == AutoresetMode.NEXT_STEP:
            idle = info.get("idle")
            first, self._over = self._over, ended if idle is None else ended | idle
        else:
            first = ended
            if ended.any():
                if self._mode == AutoresetMode.SAME_STEP:
                    final_obs, final_legal, survival = self._finals(info, ended, survival)
                else:
                    final_obs, final_legal = rows[ended], None if legal is None else legal[ended]
                    rows, legal = self._begin(ended, rows, legal)
                final_obs = self._extended(final_obs, action[ended], reward[ended])
        rows = self._extended(rows, action, reward, first)
        return WorldStep(rows, reward, terminated, truncated, legal, survival, first, final_obs, final_legal, idle)

    # ---- saving -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything that an exact continuation from here needs.

        Returns:
            Plain values and arrays, for `set_state`.

        Raises:
            ValueError: the world cannot be saved.
        """
        self._require_resumable()
        mine = {"steps": self._steps, "over": self._over.copy()}
        if self._singles is None:
            return {"world": cast("Savable", self.env).get_state(), **mine}
        return {"envs": [_single_state(e) for e in self._singles], **mine}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called.

        Args:
            state: what ``get_state`` returned for worlds that were made with the same arguments.

        Raises:
            ValueError: the world cannot be restored, or the state has another number of environments.
        """
        self._require_resumable()
        if self._singles is None:
            cast("Savable", self.env).set_state(state["world"])
        else:
            if len(state["envs"]) != self.num_envs:
                raise ValueError(f"{self.name}: state has {len(state['envs'])} environments; expected {self.num_envs}")
            self.env.reset(seed=0)  # wrappers refuse a step before a reset
            for env, saved in zip(self._singles, state["envs"], strict=True):
                _restore_single(env, saved)
            assert isinstance(self.env, SyncVectorEnv)
            self.env._autoreset_envs = np.array(state["over"], dtype=bool)
        self._steps, self._over = int(state["steps"]), np.array(state["over"], dtype=bool)

    def render(self) -> Any:
        """A picture, as the underlying VectorEnv renders it.

        Raises:
            ValueError: the world cannot be drawn.
        """
        try:
            return self.env.render()
        except gymnasium.error.Error as error:
            raise ValueError(f"{self.name}: cannot be drawn: {error}") from None

    def close(self) -> None:
        """Close the worlds."""
        self.env.close()

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _ask(self, call: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except WorldError as error:
            raise self._error(str(error)) from error
        except Exception as error:
            faults = (guard.fault() for guard in self._singles or () if isinstance(guard, Guard))
            raise self._error(next(filter(None, faults), f"{call.__name__} raised {raised(error)}")) from error

    def _error(self, text: str) -> ValueError:
        return ValueError(f"{self.name}: at step {self._steps}: {text}")

    def _not_finite(self, what: str, values: np.ndarray) -> ValueError:
        bad = int(np.flatnonzero(~np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1))[0])
        return ValueError(
            f"{self.name}: {what} of environment {bad} at step {self._steps} is not finite: {values[bad]!r}"
        )

    def _column(self, what: str, values: Any, dtype: Any) -> np.ndarray:
        try:
            column = np.asarray(values, dtype=dtype)
        except (TypeError, ValueError):
            raise self._error(f"{what} is {values!r}; expected {self.num_envs} numbers") from None
        if column.shape != (self.num_envs,):
            raise self._error(f"{what} has shape {list(column.shape)}; expected [{self.num_envs}]")
        return column

    def _observe(self, obs: Any) -> np.ndarray:
        try:
            rows = self._rows(obs, self.num_envs)
        except ValueError as error:
            raise self._error(str(error)) from None
        if not np.isfinite(rows).all():
            raise self._not_finite("observation", rows)
        return rows

    def _extended(
        self,
        rows: np.ndarray,
        action: np.ndarray | None = None,
        reward: np.ndarray | None = None,
        first: np.ndarray | None = None,
    ) -> np.ndarray:
        """``rows`` with the inputs that ``feed_back`` asks for, from the step that led to them.

        They are zero where a row is the ``first`` of its episode, and where no action is given.
        """
        if not self._fed_back:
            return rows
        added = np.zeros((len(rows), self.obs_size - self._rows.size), dtype=np.float32)
        if action is not None and reward is not None:
            for part in self._fed_back:
                here = slice(part.start - self._rows.size, part.start - self._rows.size + part.size)
                added[:, here] = np.eye(part.size)[action] if part.kind == "one-hot" else reward[:, None]
        if first is not None:
            added[first] = 0.0
        return np.concatenate((rows, added), axis=1)

    def _legal(self, info: dict[str, Any]) -> np.ndarray | None:
        mask = _mask_of(info)
        if self._masked is None:
            self._masked = mask is not None
        if mask is None:  # in a world with masks, a step without one leaves everything legal
            return np.ones((self.num_envs, self.n_actions), dtype=bool) if self._masked else None
        if not self._masked:
            raise self._error("info has a mask of legal actions, but reset gave none; expected one from the beginning")
        legal = np.asarray(mask)
        if legal.shape != (self.num_envs, self.n_actions) or legal.dtype.kind not in "biu":
            raise self._error(
                f"mask of legal actions has shape {list(legal.shape)} and dtype {legal.dtype}; expected "
                f"[{self.num_envs}, {self.n_actions}] of bool"
            )
        return legal.astype(bool, copy=False)

    def _finals(
        self, info: dict[str, Any], ended: np.ndarray, survival: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """In mode SAME_STEP: the final rows ``[K, obs_size]``, their legal actions ``[K, A]`` and the survival ``[N]``.

        Where an episode ended, the survival is that episode's.
        """
        which = np.flatnonzero(ended).tolist()
        legal = np.ones((len(which), self.n_actions), dtype=bool) if self._masked else None
        try:
            finals = [_entry(info["final_obs"], i) for i in which]
            space = self.env.single_observation_space
            out: Any = create_empty_array(space, len(finals))
            rows = self._rows(concatenate(space, finals, out), len(finals))
            last = info.get("final_info", {})
            mask, own = _mask_of(last), _survival(last)
            if mask is not None and legal is not None:
                legal[:] = np.asarray(mask)[which]
        except Exception as error:
            raise self._error(
                f"info['final_obs'] and info['final_info'] do not hold the final observation of environments {which} "
                f"({type(error).__name__}: {error}); with SAME_STEP autoreset a truncated episode's value comes from it"
            ) from error
        if not np.isfinite(rows).all():
            bad = which[int((~np.isfinite(rows).all(axis=1)).argmax())]
            raise self._error(f"final observation of environment {bad} is not finite")
        if survival is not None and own is not None:
            survival = np.where(ended, own, survival)
        return rows, legal, own if survival is None else survival

    def _begin(
        self, ended: np.ndarray, rows: np.ndarray, legal: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """In mode DISABLED: reset what ended; return the rows and the legal actions of all environments."""
        obs, info = self._ask(self.env.reset, options={"reset_mask": ended.copy()})
        rows = np.where(ended[:, None], self._observe(obs), rows)
        fresh = self._legal(info)
        return rows, None if legal is None or fresh is None else np.where(ended[:, None], fresh, legal)

    @property
    def saves_one_by_one(self) -> bool:
        """Whether a saved state has an entry for each environment, rather than one for all of them."""
        return self._singles is not None

    def _find_obstacle(self) -> str | None:
        """The reason in words why the world cannot be saved; None where it can."""
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


def _autoreset_mode(env: VectorEnv, name: str) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    for known in AutoresetMode:
        if mode in (known, known.value, known.name, known.name.lower()):
            return known
    expected = ", ".join(known.name for known in AutoresetMode)
    raise ValueError(f"{name}: metadata['autoreset_mode'] is {mode!r}; expected an AutoresetMode: {expected}")


def _mask_of(info: dict[str, Any]) -> Any:
    return info.get("legal", info.get("action_mask"))


def _survival(info: dict[str, Any]) -> np.ndarray | None:
    survival = info.get("survival_time")
    return None if survival is None else np.asarray(survival, dtype=np.float64)


def _entry(batch: Any, i: int) -> Any:
    """Entry i of a batch of observations, which is an array of N objects or numbers, or a dict or tuple of such."""
    if isinstance(batch, dict):
        return {key: _entry(value, i) for key, value in batch.items()}
    return tuple(_entry(value, i) for value in batch) if isinstance(batch, tuple) else batch[i]


def _single_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    base = env.unwrapped
    return {
        "world": cast("Savable", base).get_state(),
        # JSON keeps the generator's 128-bit integers
        "rng": json.dumps(base.np_random.bit_generator.state, default=lambda a: a.tolist()),
        "elapsed": [int(limit._elapsed_steps) for limit in _time_limits(env)],
    }


def _restore_single(env: gymnasium.Env[Any, Any], state: dict[str, Any]) -> None:
    base = env.unwrapped
    cast("Savable", base).set_state(state["world"])
    base.np_random.bit_generator.state = json.loads(state["rng"])
    for limit, elapsed in zip(_time_limits(env), state["elapsed"], strict=True):
        limit._elapsed_steps = elapsed


def _time_limits(env: gymnasium.Env[Any, Any]) -> list[Any]:
    """The TimeLimit wrappers of an environment, outermost first."""
    found: list[Any] = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__name__ == "TimeLimit":
            found.append(env)
        env = env.env
    return found
