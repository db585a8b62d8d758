"""Small worlds whose every number is known, and the smallest useful configuration."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from townlet.settings.config import Config


class Clock(gymnasium.Env):
    """Episodes of 3 to 7 steps: observation [tick, length], reward 1 for action tick % 2, odd lengths terminate, even
    ones are truncated. The length is drawn from the environment's generator."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"]}
    observation_space = Box(0.0, 10.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None, fault_at: int | None = None, fault: str = "obs") -> None:
        self.render_mode, self.fault_at, self.fault, self.total = render_mode, fault_at, fault, 0

    def _obs(self) -> np.ndarray:
        return np.array([self.tick, self.length], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.tick, self.length = 0, int(self.np_random.integers(3, 8))
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(action == self.tick % 2)
        self.tick += 1
        self.total += 1
        over, odd = self.tick >= self.length, self.length % 2 == 1
        obs = self._obs()
        if self.fault_at == self.total:
            obs, reward = (obs * np.nan, reward) if self.fault == "obs" else (obs, float("inf"))
        return obs, reward, over and odd, over and not odd, {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return f"tick {self.tick} of {self.length}"
        return np.full((8, 8, 3), 30 * self.tick, dtype=np.uint8)


class SavableClock(Clock):
    """A Clock that can be saved."""

    def get_state(self) -> dict[str, int]:
        return {"tick": self.tick, "length": self.length, "total": self.total}

    def set_state(self, state: dict[str, int]) -> None:
        self.tick, self.length, self.total = state["tick"], state["length"], state["total"]


class Recall(gymnasium.Env):
    """A cue of +1 or -1 at step 0, then nothing, and at step ``delay`` a reward of 1 for action 1 or 0, as the cue was.

    Observation [cue or 0, 1 at step 0 else 0]; with ``shown`` the cue stays in sight, and nothing has to be remembered.
    """

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, delay: int = 5, shown: bool = False) -> None:
        self.delay, self.shown = delay, shown

    def _obs(self) -> np.ndarray:
        first = self.tick == 0
        return np.array([self.cue if first or self.shown else 0.0, float(first)], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.tick, self.cue = 0, float(self.np_random.choice([-1, 1]))
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        over = self.tick == self.delay
        reward = float(over and action == (self.cue > 0))
        self.tick += 1
        return self._obs(), reward, bool(over), False, {}


gymnasium.register(id="Recall-v0", entry_point=Recall)
for name, kind in (("Clock", Clock), ("SavableClock", SavableClock)):
    gymnasium.register(id=f"{name}-v0", entry_point=kind)
gymnasium.register(id="LimitedClock-v0", entry_point=SavableClock, max_episode_steps=4)


def tiny(**changes: Any) -> Config:
    """A run of a second: hamlet, 2 members, 4 environments, networks of 8 units, 40 vector steps."""
    values: dict[str, Any] = {
        "members": 2, "num_envs": 4, "total_steps": 160, "learning_starts": 40, "replay_ratio": 2.0, "capacity": 400,
        "encoder": (8,), "hidden_size": 8, "head_size": 8, "seq_len": 6, "burn_in": 2, "batch_size": 4, "n_step": 2,
        "sync_every": 3, "epsilon_end": 0.05, "epsilon_decay_steps": 100, "epsilon_ladder": 0.0, "lr": 1e-3,
        "lr_decay_steps": 0, "curriculum": "off", "eval_every": 0, "eval_episodes": 3, "final_eval_episodes": 3,
        "log_every": 40, "checkpoint_every": 0, "threads": 1,
    }  # fmt: skip
    if "env" not in changes:  # a short life
        changes["env_args"] = {"level": "hamlet", "depletion": 1.5, **changes.get("env_args", {})}
    return Config(**{**values, **changes})


def clock(**changes: Any) -> Config:
    """``tiny`` in the savable Clock."""
    return tiny(**{"env": "SavableClock-v0", **changes})
