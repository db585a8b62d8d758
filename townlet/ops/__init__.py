"""The operators: recurrent Q-learning updates, LSTMs, acting steps and Adam for whole populations, each in one call.

Each operator has a file of its own with its call, its fake kernels and its backward pass. What the operators share lies
below them: ``types`` (arguments and results), ``checks`` (what is refused), ``reference`` (the readable twins),
``backend`` (which implementation runs) and ``packing`` (networks in the kernels' layout). Schemas and compiled
implementations are in ``csrc/``.
"""

from __future__ import annotations

from .._native import ISA as ISA
from .._native import ISA_LEVELS as ISA_LEVELS
from .._native import LANES as LANES
from . import replay as replay  # registers the fake kernels of its operators
from . import spatial as spatial
from .acting import act
from .adam import adam_step
from .lstm import lstm_step, lstm_unroll
from .packing import PackedActor, PackedParams, pack, pack_actor
from .td_unroll import td_unroll, td_unroll_scratch
from .types import ActorParams, ActOutput, RecurrentQParams, SequenceBatch, TDOutput, TDSpec

__all__ = [
    "ActOutput",
    "ActorParams",
    "PackedActor",
    "PackedParams",
    "RecurrentQParams",
    "SequenceBatch",
    "TDOutput",
    "TDSpec",
    "act",
    "adam_step",
    "lstm_step",
    "lstm_unroll",
    "pack",
    "pack_actor",
    "td_unroll",
    "td_unroll_scratch",
]
