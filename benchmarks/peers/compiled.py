"""Peer (d): torch.compile of two nn.LSTM calls and the TD loss."""

from __future__ import annotations

import torch

from townlet.bench.peers import Update, module_loss, nn_lstm
from townlet.bench.problem import Problem


def update(problem: Problem) -> Update:
    """The update of `nn_lstm` with its loss compiled. The first call compiles it."""
    torch.compiler.reset()  # code compiled for another shape would make this shape "dynamic"
    return nn_lstm(problem, loss=torch.compile(module_loss, dynamic=False))
