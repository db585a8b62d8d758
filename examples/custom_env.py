"""Train on an environment of your own: ten lines of world, a Config and a Trainer.

The world shows a cue once and asks for it later. Only an agent that remembers scores above 0.5.
Run it: python examples/custom_env.py (a few seconds on one core).
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from townlet import Config, Trainer


class Recall(gymnasium.Env):
    """It shows a cue of +1 or -1, then nothing for three steps. The last action is right if it answers the cue."""

    observation_space, action_space = Box(-1.0, 1.0, (2,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tick, self.cue = 0, self.np_random.choice([-1.0, 1.0])
        return np.array([self.cue, 0.0], np.float32), {}

    def step(self, action):
        self.tick += 1
        over = self.tick == 5
        reward = float(over and action == (self.cue > 0))
        return np.array([0.0, self.tick == 4], np.float32), reward, over, False, {}  # the second number: answer now


gymnasium.register("Recall-v0", Recall)

SETTINGS = {
    "env": "Recall-v0", "total_steps": 24_000, "num_envs": 32, "learning_starts": 2_000, "capacity": 24_000,
    "seq_len": 10, "burn_in": 0, "n_step": 3, "encoder": (), "hidden_size": 16, "head_size": None, "lr": 5e-3,
    "lr_decay_steps": 0, "epsilon_end": 0.1, "epsilon_decay_steps": 10_000, "epsilon_ladder": 0.0, "gamma": 0.95,
    "sync_every": 20, "threads": 1,
}  # fmt: skip


def main() -> None:
    """Train, evaluate and print the result."""
    trainer = Trainer(Config(**SETTINGS))
    trainer.train()
    score = trainer.evaluate().returns.mean()
    print(f"return after {trainer.env_steps:,} steps: {score:.2f} (chance 0.5, best 1.0)")
    assert score > 0.9, "the cue was not learned"


if __name__ == "__main__":
    main()
