"""POPGym worlds as the peers see them: the rows that ours see (`townlet.envs`), one environment each."""

from __future__ import annotations

import gymnasium
import numpy as np
import popgym  # noqa: F401  # registers its worlds
from gymnasium.wrappers import DtypeObservation, FlattenObservation, TransformReward


def make(env_id: str, reward_scale: float = 1.0) -> gymnasium.Env:
    """`env_id` with a flat float32 observation (one-hot where it is discrete) and its rewards times `reward_scale`."""
    env = DtypeObservation(FlattenObservation(gymnasium.make(env_id, disable_env_checker=True)), np.float32)
    return TransformReward(env, lambda reward: reward_scale * float(reward))
