"""What every method of a comparison may use: environment steps, updates, windows, network size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Environment steps are of one agent."""

    total_steps: int
    eval_every: int
    eval_episodes: int
    num_envs: int
    hidden_size: int
    seq_len: int  # steps of a window
    batch_size: int  # windows of an update
    replay_ratio: float  # trained steps per environment step
    learning_starts: int
    capacity: int  # steps kept
    lr: float
    gamma: float
    reward_scale: float  # factor on the rewards learned from, not on those reported
    epsilon_end: float
    epsilon_decay_steps: int

    def evaluations(self) -> Iterator[int]:
        """The steps at which agents are evaluated; the last is the end."""
        yield from range(self.eval_every, self.total_steps, self.eval_every)
        yield self.total_steps

    def updates(self, steps: int) -> int:
        """Updates that `steps` environment steps pay for."""
        due = (steps - self.learning_starts) * self.replay_ratio / (self.batch_size * self.seq_len)
        return max(0, int(due))

    def epsilon(self, steps: int) -> float:
        """Share of random actions: linear from 1, then constant."""
        done = min(1.0, steps / self.epsilon_decay_steps)
        return 1.0 + (self.epsilon_end - 1.0) * done
