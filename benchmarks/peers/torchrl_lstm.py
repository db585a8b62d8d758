"""Peer (e): TorchRL's LSTMModule, which is told through `is_init` where episodes begin inside a sequence.

On a GPU it has a Triton kernel for the whole sequence, in TF32 or bfloat16 (`recurrent_backend`, TorchRL 0.13 on).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import LSTMModule, set_recurrent_mode

from townlet.bench.peers import Net, Update, td_loss
from townlet.bench.problem import Problem


class _Network(nn.Module):
    def __init__(self, params, **settings: Any):
        super().__init__()
        net = Net(params)
        self.head = net.head
        keys = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
        lstm = nn.LSTM(net.lstm.input_size, net.lstm.hidden_size, batch_first=True, device=params.w_ih.device)
        for mine, theirs in zip(lstm.parameters(), net.lstm.parameters(), strict=True):
            mine.data = theirs.data
        self.lstm = LSTMModule(lstm=lstm, **keys, **settings)

    def forward(self, batch: TensorDict) -> torch.Tensor:
        return self.head(self.lstm(batch.copy())["y"])


def triton(problem: Problem) -> Update:
    """The same as `update` with the Triton kernel, in the problem's compute_dtype. float32 means TF32 there."""
    return update(problem, recurrent_backend="triton", recurrent_compute_dtype=problem.spec.compute_dtype)


def update(problem: Problem, **settings: Any) -> Update:
    """The update of a problem of one member, whose resets may fall anywhere.

    Args:
        problem: the update.
        **settings: arguments of `LSTMModule`.
    """
    b = problem.batch
    online, target = _Network(problem.online, **settings), _Network(problem.target, **settings)
    B, T = b.reset.shape[1:]

    def inputs(features: torch.Tensor) -> TensorDict:
        # A state is stored at each sequence's first step. Where an episode begins it is zero.
        h, c = (v.new_zeros(B, T, 1, v.shape[-1]) for v in (b.h0, b.c0))
        start = ~b.reset[0, :, :1]
        h[:, 0], c[:, 0] = b.h0[0].unsqueeze(1) * start.unsqueeze(-1), b.c0[0].unsqueeze(1) * start.unsqueeze(-1)
        return TensorDict({"x": features[0], "h": h, "c": c, "is_init": b.reset[0].unsqueeze(-1)}, batch_size=[B, T])

    x, x_target = inputs(b.features_online), inputs(b.features_target)
    action, reward, going = (v[0].t() for v in (b.action, b.reward, (~b.terminated).float()))
    weights = list(online.lstm.lstm.parameters()) + list(online.head.parameters())

    def run():
        with set_recurrent_mode(True):
            with torch.no_grad():
                q_target = target(x_target)
            q = online(x)
        loss = td_loss(q.transpose(0, 1), q_target.transpose(0, 1), action, reward, going, problem.spec.gamma)
        w_ih, w_hh, bias, _, w_q, b_q = torch.autograd.grad(loss, weights)
        return [v.detach().unsqueeze(0) for v in (loss, w_ih, w_hh, bias, w_q, b_q)]

    return run
