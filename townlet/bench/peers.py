"""What a user of plain PyTorch would write: the same update from LSTM cells or modules and autograd.

Each function takes a `Problem` of one member and returns a callable that returns `problem.Gradients`. Before the clock
starts, the inputs are already time-major and in the dtype that the peer computes in, which favours the peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import RecurrentQParams
from .problem import Gradients, Problem

Update = Callable[[], Gradients]
Loss = Callable[..., Tensor]


def td_loss(q: Tensor, q_target: Tensor, action: Tensor, reward: Tensor, going: Tensor, gamma: float) -> Tensor:
    """The one-step double-Q Huber loss.

    Args:
        q: the online network's Q-values, ``[S + 1, B, A]``.
        q_target: the target network's Q-values, ``[S + 1, B, A]``.
        action: the actions taken, ``[S, B]``.
        reward: the rewards, ``[S, B]``.
        going: 1 unless the episode terminated, ``[S, B]``.
        gamma: the discount per step.
    """
    with torch.no_grad():
        best = q[1:].argmax(-1, keepdim=True)
        y = reward + gamma * going * q_target[1:].gather(-1, best).squeeze(-1)
    taken = q[:-1].gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return F.huber_loss(taken, y)


class Net(nn.Module):
    """`torch.nn.LSTM` and a linear head, with the weights of one member of a problem's network."""

    def __init__(self, params: RecurrentQParams, member: int = 0, dtype: torch.dtype = torch.float32):
        super().__init__()
        w_ih, w_hh, bias, w_q, b_q = (w[member].detach() for w in params if w is not None)
        like: dict[str, Any] = {"device": w_ih.device, "dtype": dtype}
        # Made where it will run, so that on a GPU its weights are in the one block of memory that cuDNN wants.
        self.lstm = nn.LSTM(w_ih.shape[1], w_hh.shape[1], **like)
        self.head = nn.Linear(w_q.shape[1], w_q.shape[0], **like)
        with torch.no_grad():
            values = (w_ih, w_hh, bias, torch.zeros_like(bias), w_q, b_q)
            for mine, value in zip(self.parameters(), values, strict=True):
                mine.copy_(value)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """Q-values ``[S + 1, B, A]`` in float32, from x ``[S + 1, B, D]`` and the state h, c ``[1, B, H]``."""
        y, _ = self.lstm(x, (h, c))
        return self.head(y).float()


class Inputs:
    """One member's batch, time-major. Features and states are in ``dtype``, the rest is float32."""

    def __init__(self, problem: Problem, member: int = 0, dtype: torch.dtype = torch.float32):
        b, p = problem.batch, member
        assert b.features_target is not None
        self.online = b.features_online[p].transpose(0, 1).to(dtype).contiguous()
        self.target = b.features_target[p].transpose(0, 1).to(dtype).contiguous()
        self.h, self.c = b.h0[p].unsqueeze(0).to(dtype), b.c0[p].unsqueeze(0).to(dtype)
        self.action, self.reward = b.action[p].t().contiguous(), b.reward[p].t().contiguous()
        self.going = (~b.terminated[p].t()).float().contiguous()
        assert isinstance(problem.spec.gamma, float)
        self.gamma = problem.spec.gamma


def _gradients(loss: Tensor, gradients: tuple[Tensor, ...]) -> Gradients:
    """The gradients in the order of problem.NAMES, with one of the LSTM's two biases left out."""
    w_ih, w_hh, bias, _, w_q, b_q = gradients
    return [v.detach().unsqueeze(0) for v in (loss, w_ih, w_hh, bias, w_q, b_q)]


def module_loss(online: nn.Module, target: nn.Module, i: Inputs) -> Tensor:
    """The loss of one member from its online and its target network."""
    with torch.no_grad():
        q_target = target(i.target, i.h, i.c)
    return td_loss(online(i.online, i.h, i.c), q_target, i.action, i.reward, i.going, i.gamma)


@contextmanager
def cudnn_tf32(allowed: bool) -> Iterator[None]:
    """Inside, allow or forbid cuDNN to round float32 operands to TF32, which torch allows by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def nn_lstm(
    problem: Problem, dtype: torch.dtype = torch.float32, loss: Loss = module_loss, *, tf32: bool = False
) -> Update:
    """The update from two `torch.nn.LSTM` calls, the TD loss and autograd.

    Args:
        problem: an update of one member.
        dtype: the dtype of weights, inputs and states.
        loss: computes the loss from the two networks.
        tf32: whether float32 operands may be rounded to TF32 on a GPU. If not, float32 means float32, whatever torch's
            default.
    """
    online, target = Net(problem.online, dtype=dtype), Net(problem.target, dtype=dtype)
    inputs, weights = Inputs(problem, dtype=dtype), list(online.parameters())

    def update() -> Gradients:
        with cudnn_tf32(tf32):
            value = loss(online, target, inputs)
            return _gradients(value, torch.autograd.grad(value, weights))

    return update


def nn_lstm_autocast(problem: Problem) -> Update:
    """The update of `nn_lstm` with float32 weights and inputs, under torch.autocast to bfloat16."""
    run = nn_lstm(problem)

    def update() -> Gradients:
        with torch.autocast(problem.batch.reward.device.type, torch.bfloat16):
            return run()

    return update


class _CellNet(nn.Module):
    def __init__(self, net: Net):
        super().__init__()
        self.cell = nn.LSTMCell(net.lstm.input_size, net.lstm.hidden_size)
        for mine, theirs in zip(self.cell.parameters(), net.lstm.parameters(), strict=True):
            mine.data = theirs.data
        self.head = net.head

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        state, ys = (h[0], c[0]), []
        for x_t in x:
            state = self.cell(x_t, state)
            ys.append(state[0])
        return self.head(torch.stack(ys))


def step_loop(problem: Problem) -> Update:
    """The update from `torch.nn.LSTMCell` in a Python loop over the steps, for both networks, and autograd."""
    online, target = _CellNet(Net(problem.online)), _CellNet(Net(problem.target))
    inputs, weights = Inputs(problem), list(online.parameters())

    def update() -> Gradients:
        value = module_loss(online, target, inputs)
        return _gradients(value, torch.autograd.grad(value, weights))

    return update
