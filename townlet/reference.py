"""The readable twins of the operators in plain PyTorch: see ``townlet.ops.reference``."""

from __future__ import annotations

from .ops.reference import (
    act,
    adam_step,
    cell,
    choose,
    head,
    lstm_step,
    lstm_unroll,
    n_step_return,
    pack,
    replay_windows,
    replay_write,
    rescale,
    rescale_inverse,
    spatial_encode,
    td_unroll,
    unroll_q,
    valid_transitions,
)

__all__ = [
    "act",
    "adam_step",
    "cell",
    "choose",
    "head",
    "lstm_step",
    "lstm_unroll",
    "n_step_return",
    "pack",
    "replay_windows",
    "replay_write",
    "rescale",
    "rescale_inverse",
    "spatial_encode",
    "td_unroll",
    "unroll_q",
    "valid_transitions",
]
