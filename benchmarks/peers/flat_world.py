"""POPGym worlds as the peers see them: with the observations that our agents get, one environment at a time."""

from __future__ import annotations

import gymnasium
import numpy as np
import popgym  # noqa: F401  # registers its worlds
from gymnasium.wrappers import DtypeObservation, FlattenObservation, TransformReward


def make(env_id: str, reward_scale: float = 1.0) -> gymnasium.Env:
    """A world with flat float32 observations (one-hot where they are discrete) and scaled rewards.

    Args:
        env_id: the Gymnasium id of the world.
        reward_scale: the factor on its rewards.
    """
    env = DtypeObservation(FlattenObservation(gymnasium.make(env_id, disable_env_checker=True)), np.float32)
    return TransformReward(env, lambda reward: reward_scale * float(reward))
