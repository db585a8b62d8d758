"""PettingZoo's parallel environments: every agent of every copy is one environment of a Gymnasium ``VectorEnv``.

All agents share the networks. Each has its own stream of observations, actions and rewards, and its own recurrent
state. Autoreset is NEXT_STEP for all agents of a copy at once, when the last of them is done. An agent that is done
before the others is idle until then: ``info["idle"]`` says so, and nothing is learned from its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Dict, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from .faults import WorldError, raised

MASK = "action_mask"
"""The key of an agent's legal actions, in its observation or in its info."""


class ParallelVectorEnv(VectorEnv[Any, Any, Any]):
    """K copies of an environment with M agents, as K * M environments.

    Copy k has the environments k * M to k * M + M - 1.

    Args:
        make: makes a copy, which has the interface of ``pettingzoo.ParallelEnv``.
        num_envs: K * M; 1 stands for one copy.
        name: the world's id, for error messages.

    Attributes:
        agents: the agents' names, in the order of a copy's environments.
        agents_per_copy: M.
        copies: the K copies.

    Raises:
        ValueError: ``num_envs`` is not a multiple of the number of agents, or agents differ in their spaces.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int, name: str) -> None:
        first = make()
        self.agents: list[str] = list(first.possible_agents)
        self.agents_per_copy = M = len(self.agents)
        if num_envs == 1:
            num_envs = M
        if num_envs % M:
            raise ValueError(
                f"{name}: num_envs is {num_envs}; expected a multiple of its {M} agents ({', '.join(self.agents)}): "
                "num_envs, eval_episodes and final_eval_episodes count agents"
            )
        self.num_envs = num_envs
        observation = self._shared(first.observation_space, "observation", name)
        self.single_action_space = self._shared(first.action_space, "action", name)
        self._masks_inside = False
        if isinstance(observation, Dict) and MASK in observation.spaces:
            self._masks_inside, observation = True, _without_mask(observation)
        self.single_observation_space = observation
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        modes = getattr(first, "metadata", {}).get("render_modes", [])
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": modes}
        self.render_mode = getattr(first, "render_mode", None)
        self.copies = [first, *(make() for _ in range(num_envs // M - 1))]
        self._over = [False] * len(self.copies)  # whether the coming step of the copy only resets it
        self._seen: list[Any] = [None] * num_envs  # each agent's last observation
        self._masks: list[Any] = [None] * num_envs  # each agent's legal actions at that observation, None for all
        self._done = np.zeros(num_envs, dtype=bool)  # whether the agent's part of the episode is over
        self._idle = np.zeros(num_envs, dtype=bool)  # whether it was over before this step

    def _shared(self, space_of: Callable[[str], Space[Any]], what: str, name: str) -> Space[Any]:
        spaces = {agent: space_of(agent) for agent in self.agents}
        first = spaces[self.agents[0]]
        for agent, space in spaces.items():
            if space != first:
                raise ValueError(
                    f"{name}: agents differ in their {what} space ({self.agents[0]}: {first}; {agent}: {space}); "
                    "expected the same for all, since they share networks"
                )
        return first

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every copy. Copy k takes the seed of its first agent."""
        for k in range(len(self.copies)):
            self._begin(k, seed if seed is None or isinstance(seed, int) else seed[k * self.agents_per_copy], options)
        return self._observations(), self._info()

    def step(self, actions: Sequence[Any]) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step in every copy. The actions of idle agents, and of copies that only reset, are ignored."""
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        self._idle = self._done.copy()
        for k, copy in enumerate(self.copies):
            if self._over[k]:
                self._begin(k)
                continue
            acting = [(i, agent) for i, agent in self._agents(k) if not self._done[i]]
            taken = {agent: actions[i] for i, agent in acting}
            obs, rewards, terminations, truncations, infos = self._ask(k, "step", taken)
            nobody = not copy.agents
            for i, agent in acting:
                self._take(i, agent, obs, infos)
                reward[i], terminated[i] = rewards[agent], terminations[agent]
                # a copy without agents is over, even where it does not say so
                truncated[i] = truncations[agent] or (nobody and not terminated[i])
                self._done[i] = terminated[i] or truncated[i]
            self._over[k] = bool(self._done[[i for i, _ in self._agents(k)]].all())
        return self._observations(), reward, terminated, truncated, self._info()

    def render(self) -> Any:
        """A picture of the first copy."""
        return self.copies[0].render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies; Gymnasium's ``close`` calls this."""
        for copy in self.copies:
            copy.close()

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _agents(self, k: int) -> enumerate[str]:
        """Pairs of environment and agent of copy k."""
        return enumerate(self.agents, k * self.agents_per_copy)

    def _begin(self, k: int, seed: int | None = None, options: Any = None) -> None:
        obs, infos = self._ask(k, "reset", seed=seed, options=options)
        for i, agent in self._agents(k):
            self._take(i, agent, obs, infos)
            self._done[i] = self._idle[i] = False
        self._over[k] = False

    def _ask(self, k: int, call: str, *arguments: Any, **named: Any) -> Any:
        try:
            return getattr(self.copies[k], call)(*arguments, **named)
        except Exception as error:
            first = k * self.agents_per_copy
            raise WorldError(f"{call} of the copy with environment {first} raised {raised(error)}") from error

    def _take(self, i: int, agent: str, obs: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        if agent not in obs:
            raise WorldError(f"no observation of {agent}, environment {i}; expected one of each agent until it is done")
        seen, mask = obs[agent], infos.get(agent, {}).get(MASK)
        if self._masks_inside:
            mask = seen[MASK]
            rest = {key: value for key, value in seen.items() if key != MASK}
            seen = rest if isinstance(self.single_observation_space, Dict) else next(iter(rest.values()))
        self._seen[i], self._masks[i] = seen, mask

    def _observations(self) -> Any:
        out: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return concatenate(self.single_observation_space, self._seen, out)

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"idle": self._idle.copy()}
        if any(mask is not None for mask in self._masks):
            length = max(len(mask) for mask in self._masks if mask is not None)
            everything = np.ones(length, dtype=bool)
            info[MASK] = np.stack([everything if m is None else np.asarray(m, dtype=bool) for m in self._masks])
        return info


def _without_mask(space: Dict) -> Space[Any]:
    """The space of the observation without its mask. Where a single entry is left, it is that entry's space."""
    rest = {key: entry for key, entry in space.spaces.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else Dict(rest)
