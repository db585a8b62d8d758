"""Acting in the training worlds and storing what happens: the part of training that another process could own.

A rollout is told which actor to act with, where to store, and how many steps the members have taken. It knows nothing
of learning, records or checkpoint files. Everything that decides its next step is in ``state_dict``, except the
recurrent state, which the actor carries.

Symbols: P members, E environments of each, H units of the recurrent state, A actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..envs.adapter import VectorAdapter
from ..envs.make import make_worlds
from ..evaluation.play import training_seeds
from ..learning.assembly import check_agents, open_worlds
from ..settings.config import Config
from .statistics import EpisodeStatistics


class RecurrentActor(Protocol):
    """What chooses the actions: the acting side of a `VectorizedPopulation`."""

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """h and c, float32 ``[P, E, H]``, as they are before the next observation."""

    def act(self, obs: Tensor, reset: Tensor, legal: Tensor | None, epsilon: Tensor) -> Tensor:
        """Choose actions ``[P, E]`` for observations ``[P, E, obs_size]`` and advance the state once."""


class TransitionStore(Protocol):
    """What keeps the transitions. `SequentialReplayBuffer` explains the arguments."""

    def add(
        self,
        obs: Tensor,
        reset: Tensor,
        legal: Tensor | None,
        h: Tensor,
        c: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        mask: Tensor,
    ) -> None:
        """Store one step of all environments."""

    def add_final(self, ended: Tensor, obs: np.ndarray, legal: np.ndarray | None, h: Tensor, c: Tensor) -> None:
        """Store the last observations of the episodes that ended, where the step already shows the next ones."""


class Rollout:
    """The training worlds of all members, the episodes that run in them, and the step that takes these further.

    Args:
        config: the settings. Only the world, the curriculum, the seed, the sizes and the reward's scale are read.
        make: opens worlds: ``make(env_id, n, **args)``.

    Attributes:
        worlds: the P * E environments of the present stage, ordered member by member.
        stage: the present stage of the curriculum, counted from 0.
        obs: the present observations, float32 ``[P, E, obs_size]``.
        legal: the legal actions, bool ``[P, E, A]``; None where the world has no mask.
        reset: whether ``obs`` is the first of an episode, bool ``[P, E]``.
        over: whether ``obs`` is the last of an episode, so that the coming step only resets, bool ``[P, E]``.
        restarts: how many times running episodes were cut and new ones begun.
        episodes: statistics of the training episodes.
        seconds: wall-clock seconds spent so far on acting ("act"), in the worlds ("env") and on storing ("replay").

    Raises:
        ValueError: the world is not supported, or the members' environments do not fill whole copies of it.
    """

    worlds: VectorAdapter
    obs: Tensor
    legal: Tensor | None
    reset: Tensor
    over: Tensor

    def __init__(self, config: Config, *, make: Callable[..., VectorAdapter] = make_worlds) -> None:
        self.config, self.make = config, make
        self.stage = self.restarts = 0
        self.episodes = EpisodeStatistics(config.members, config.num_envs)
        self.seconds = dict.fromkeys(("act", "env", "replay"), 0.0)
        self.worlds = self._open_worlds()
        check_agents(config, self.worlds)
        self._begin_episodes()

    def step(self, actor: RecurrentActor, store: TransitionStore, epsilon: Tensor) -> int:
        """Take one step of every environment and store it with the state that came before its observation.

        Args:
            actor: chooses the actions.
            store: keeps the transitions.
            epsilon: the share of random actions, float64 ``[P, E]``.

        Returns:
            E, the number of environment steps that each member took.

        Raises:
            ValueError: the world failed; the message names world, environment and step.
        """
        clock = time.perf_counter
        t0 = clock()
        h, c = actor.state
        action = actor.act(self.obs, self.reset, self.legal, epsilon)
        t1 = clock()
        step = self.worlds.step(action.reshape(-1).cpu().numpy())
        t2 = clock()
        reward = self._rows(step.reward)
        if self.config.reward_scale != 1.0:
            reward = reward * self.config.reward_scale
        store.add(self.obs, self.reset, self.legal, h, c, action, reward, self._rows(step.terminated), ~self.over)
        if step.final_obs is not None:
            store.add_final(self._rows(step.over), step.final_obs, step.final_legal, *actor.state)
        self.episodes.add(step)
        self._observe(step.obs, step.legal)
        unreal = step.over & ~step.first  # the coming step only resets, or no agent takes it
        unreal = unreal if step.idle is None else unreal | step.idle
        self.reset, self.over = self._rows(step.first), self._rows(unreal)
        t3 = clock()
        self.seconds["act"] += t1 - t0
        self.seconds["env"] += t2 - t1
        self.seconds["replay"] += t3 - t2
        return self.config.num_envs

    def enter_stage(self, env_steps: int, actor: RecurrentActor, store: TransitionStore) -> bool:
        """Begin the stage of the curriculum that is due at ``env_steps``. A new stage cuts the running episodes.

        Returns:
            Whether a new stage began.
        """
        due = sum(first <= env_steps for first, _ in self.config.stages) - 1
        if due == self.stage:
            return False
        self._change_stage(due)
        self.cut_episodes(actor, store)
        return True

    def cut_episodes(self, actor: RecurrentActor, store: TransitionStore) -> None:
        """Store the running episodes as truncated and begin new ones, with seeds that depend on ``restarts``.

        The observation that each episode had reached becomes its final one, as an autoreset step would have stored it.
        """
        h, c = actor.state
        nothing = torch.zeros(self.reset.shape)
        never = torch.zeros(self.reset.shape, dtype=torch.bool)
        store.add(self.obs, self.reset, self.legal, h, c, nothing.long(), nothing, never, never)
        self.restarts += 1
        self._begin_episodes()
        self.episodes.forget_running()

    # ---- saving -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, except the actor's state, as plain values, tensors and arrays."""
        return {
            "stage": self.stage,
            "restarts": self.restarts,
            "seconds": dict(self.seconds),
            "worlds": self.worlds.get_state() if self.worlds.resumable else None,
            "obs": self.obs.clone(),
            "legal": None if self.legal is None else self.legal.clone(),
            "reset": self.reset.clone(),
            "over": self.over.clone(),
            "episodes": self.episodes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str | None:
        """Take over what ``state_dict`` returned, from a run with the same settings.

        Returns:
            None, or the reason why the worlds cannot continue from where they were. In that case the caller has to
            call `cut_episodes`, with an actor and a store that have taken over their own states.

        Raises:
            ValueError: the observations, masks or flags have a different shape or type.
        """
        for name in ("obs", "legal", "reset", "over"):
            here, given = (None if v is None else (v.dtype, v.shape) for v in (getattr(self, name), state[name]))
            if here != given:
                raise ValueError(f"{name} is {given}; expected {here}")
        self.obs, self.legal = state["obs"], state["legal"]
        self.reset, self.over = state["reset"], state["over"]
        self.restarts = int(state["restarts"])
        self.seconds = {name: float(state["seconds"][name]) for name in self.seconds}
        self.episodes.load_state_dict(state["episodes"])
        if self.stage != state["stage"]:
            self._change_stage(state["stage"])
        if state["worlds"] is not None and self.worlds.resumable:
            self.worlds.set_state(state["worlds"])
            return None
        return self.worlds.why_not_resumable or "the checkpoint does not hold the worlds"

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _open_worlds(self) -> VectorAdapter:
        """The worlds of the present stage."""
        c = self.config
        return open_worlds(c, c.members * c.num_envs, c.stages[self.stage][1], self.make, workers=c.workers)

    def _change_stage(self, stage: int) -> None:
        """Open the worlds of ``stage`` in place of the present ones. No episode runs in them yet."""
        self.stage = stage
        self.worlds.close()
        self.worlds = self._open_worlds()

    def _begin_episodes(self) -> None:
        c = self.config
        seeds = [s for p in range(c.members) for s in training_seeds(c.seed + p, c.num_envs, self.restarts)]
        self._observe(*self.worlds.reset(seeds))
        self.reset = torch.ones(c.members, c.num_envs, dtype=torch.bool)
        self.over = torch.zeros(c.members, c.num_envs, dtype=torch.bool)

    def _observe(self, obs: np.ndarray, legal: np.ndarray | None) -> None:
        self.obs, self.legal = self._rows(obs), None if legal is None else self._rows(legal)

    def _rows(self, array: np.ndarray) -> Tensor:
        """A numpy array ``[P * E, ...]`` as a tensor ``[P, E, ...]`` that shares its memory."""
        return torch.from_numpy(array).view(self.config.members, self.config.num_envs, *array.shape[1:])
