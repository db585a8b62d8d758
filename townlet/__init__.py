"""Townlet: populations of recurrent Q-learning agents (DRQN, R2D2) on one fused operator.

Public names load on first use, so that the command line answers at once and `import townlet.ops` does not pull in
environments and plots. ``__init__.pyi`` tells type checkers and editors what they are.
"""

from __future__ import annotations

import importlib as _importlib
import os as _os

# Idle OpenMP threads sleep instead of spinning, unless the user says otherwise. Spinning gains nothing here, and on a
# machine that is busy with other things it made training on two threads ten times slower. It has to be set before
# torch is imported, which brings the one OpenMP runtime.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ._build import __version__ as __version__
from ._build import build_config as build_config

_HOMES = {
    "Config": "settings.config",
    "Learner": "learning.learner",
    "RecurrentConvQNetwork": "learning.networks",
    "RecurrentQNetwork": "learning.networks",
    "RecurrentSpatialQNetwork": "learning.networks",
    "SequentialReplayBuffer": "learning.replay",
    "TownVectorEnv": "envs",
    "Trainer": "training.trainer",
    "VectorizedPopulation": "learning.population",
}
"""Where each public name that is not defined here lives."""

__all__ = sorted([*_HOMES, "__version__", "build_config"])


def __getattr__(name: str) -> object:
    """A public name, from its home; AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, which `dir` and editors show though they are not loaded yet."""
    return sorted({*globals(), *__all__})
