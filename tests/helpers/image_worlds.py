"""A small world of images, and the smallest useful configuration for it."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from worlds import tiny


class Signs(gymnasium.Env):
    """One picture after another; the right action is the symbol in the middle. Episodes of 6."""

    observation_space, action_space = Box(0, 3, (5, 5, 1), np.uint8), Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tick = 0
        return self._see(), {}

    def _see(self):
        self.image = self.np_random.integers(4, size=(5, 5, 1), dtype=np.uint8)
        return self.image

    def step(self, action):
        reward = float(action == self.image[2, 2, 0])
        self.tick += 1
        return self._see(), reward, self.tick == 6, False, {}


gymnasium.register(id="Signs-v0", entry_point=Signs)


def signs(**changes):
    sizes = {"conv": "8x3", "encoder": (16,), "gamma": 0.0, "n_step": 1, "lr": 5e-3, "members": 1, "eval_episodes": 50}
    sizes["ema_decay"] = 0.0  # what is evaluated are the weights themselves
    return tiny(env="Signs-v0", **{**sizes, **changes})
