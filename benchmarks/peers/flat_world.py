"""POPGym worlds as the peers see them: the rows that ours see (`townlet.envs`), one environment each."""

from __future__ import annotations

import gymnasium
import numpy as np
import popgym  # noqa: F401  # registers its worlds
from gymnasium.wrappers import DtypeObservation, FlattenObservation


def make(env_id: str) -> gymnasium.Env:
    """`env_id` with a flat float32 observation (one-hot where it is discrete)."""
    return DtypeObservation(FlattenObservation(gymnasium.make(env_id, disable_env_checker=True)), np.float32)
