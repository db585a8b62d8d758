"""Townlet: populations of recurrent Q-learning agents (DRQN, R2D2) on one fused operator."""

from __future__ import annotations

import os as _os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads sleep instead of spinning, unless the user says otherwise. Spinning gains nothing here, and on a
# machine that is busy with other things it made training on two threads ten times slower. Has to be set before torch.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch as _torch  # noqa: F401  it brings the one OpenMP runtime

from ._build import __version__, build_config

if TYPE_CHECKING:
    from .envs import TownVectorEnv
    from .learning.learner import Learner
    from .learning.networks import RecurrentConvQNetwork, RecurrentQNetwork, RecurrentSpatialQNetwork
    from .learning.population import VectorizedPopulation
    from .learning.replay import SequentialReplayBuffer
    from .settings.config import Config
    from .training.trainer import Trainer

_HOMES = {
    "Config": "config",
    "Learner": "learner",
    "RecurrentConvQNetwork": "networks",
    "RecurrentQNetwork": "networks",
    "RecurrentSpatialQNetwork": "networks",
    "SequentialReplayBuffer": "replay",
    "TownVectorEnv": "envs",
    "Trainer": "trainer",
    "VectorizedPopulation": "population",
}

__all__ = [
    "Config",
    "Learner",
    "RecurrentConvQNetwork",
    "RecurrentQNetwork",
    "RecurrentSpatialQNetwork",
    "SequentialReplayBuffer",
    "TownVectorEnv",
    "Trainer",
    "VectorizedPopulation",
    "__version__",
    "build_config",
]


if not TYPE_CHECKING:  # else every name would be one, to a type checker

    def __getattr__(name: str) -> Any:
        """Public names load on first use, so that `import townlet.ops` does not pull in environments and plots."""
        if name in _HOMES:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
