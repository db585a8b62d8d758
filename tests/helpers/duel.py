"""A PettingZoo parallel environment whose every number is known; it needs no pettingzoo."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Duel:
    """Agents "brief" and "long". Observations are [agent, tick, episode]; agent i (0 or 1) gets 10 i + its action.

    "brief" is done after its second step (terminated), "long" after its fourth: truncated in episodes of even number,
    terminated in odd ones. ``masks``: "info" or "obs" forbid the action tick % 3, where they say so. ``fault`` breaks
    it at tick 1.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012
    LIVES = {"brief": 2, "long": 4}  # noqa: RUF012

    def __init__(self, masks: str = "", fault: str = "", render_mode: str | None = None) -> None:
        self.possible_agents, self.masks, self.fault, self.render_mode = list(self.LIVES), masks, fault, render_mode
        self.episode = -1
        self.asked: list[dict[str, int]] = []
        self.seeds: list[int | None] = []
        self.closed = False

    def observation_space(self, agent: str) -> Any:
        numbers = Box(0, 9, (4 if self.fault == "spaces" and agent == "long" else 3,), np.float32)
        mask = Box(0, 1, (3,), np.int8)
        return Dict(observation=numbers, action_mask=mask) if self.masks == "obs" else numbers

    def action_space(self, agent: str) -> Any:
        return Discrete(3)

    def _see(self, agents: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        obs: dict[str, Any] = {}
        for agent in agents:
            obs[agent] = np.array([self.possible_agents.index(agent), self.tick, self.episode], np.float32)
        mask = np.arange(3) != self.tick % 3
        if self.masks == "obs":
            obs = {agent: {"action_mask": mask.astype(np.int8), "observation": seen} for agent, seen in obs.items()}
        # only one of the two says what is legal
        return obs, {
            agent: {"action_mask": mask} if self.masks == "info" and agent == "long" else {} for agent in agents
        }

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        self.tick, self.agents = 0, list(self.possible_agents)
        self.episode += 1
        return self._see(self.agents[: 1 if self.fault == "late" else 2])

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Any], ...]:
        assert list(actions) == self.agents
        self.asked.append({agent: int(a) for agent, a in actions.items()})
        self.tick += 1
        if self.fault == "raises":
            raise RuntimeError("the sword is broken")
        agents, over = self.agents, {a: self.tick == self.LIVES[a] for a in self.agents}
        rewards = {a: 10.0 * self.possible_agents.index(a) + actions[a] for a in agents}
        cut = {a: over[a] and a == "long" and self.episode % 2 == 0 for a in agents}
        terminated = {a: over[a] and not cut[a] for a in agents}
        self.agents = [a for a in agents if not over[a]]
        if self.fault == "vanishes" and self.tick == 3:
            self.agents = []
        obs, infos = self._see(agents)
        return obs, rewards, terminated, cut, infos

    def render(self) -> str:
        return f"tick {self.tick}"

    def close(self) -> None:
        self.closed = True


def parallel_env(**arguments: Any) -> Duel:
    return Duel(**arguments)
