"""What every method of a comparison may use: environment steps, updates, windows and the size of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What one agent may use. Steps are environment steps of that agent."""

    total_steps: int
    eval_every: int
    eval_episodes: int
    num_envs: int
    hidden_size: int
    seq_len: int  # steps in a window
    batch_size: int  # windows in an update
    replay_ratio: float  # trained steps per environment step
    learning_starts: int
    capacity: int  # steps that replay keeps
    lr: float
    gamma: float
    reward_scale: float  # factor on the rewards learned from, not on those reported
    epsilon_end: float
    epsilon_decay_steps: int

    def evaluations(self) -> Iterator[int]:
        """The steps at which agents are evaluated. The last is the end of training."""
        yield from range(self.eval_every, self.total_steps, self.eval_every)
        yield self.total_steps

    def updates(self, steps: int) -> int:
        """How many updates the replay ratio calls for after ``steps`` environment steps."""
        due = (steps - self.learning_starts) * self.replay_ratio / (self.batch_size * self.seq_len)
        return max(0, int(due))

    def epsilon(self, steps: int) -> float:
        """The share of random actions, which falls linearly from 1 and is then constant."""
        done = min(1.0, steps / self.epsilon_decay_steps)
        return 1.0 + (self.epsilon_end - 1.0) * done
