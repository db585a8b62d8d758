"""Peers (g): P members as pairs of nn.LSTM modules in a Python loop, or by torch.func.vmap over stacked weights."""

from __future__ import annotations

import torch
from torch import Tensor

from townlet.bench.peers import Inputs, Net, Update, module_loss, td_loss
from townlet.bench.problem import Problem


def module_loop(problem: Problem) -> Update:
    """The updates of the members, one after the other."""
    members = []
    for p in range(problem.shape.P):
        online = Net(problem.online, p)
        members.append((online, Net(problem.target, p), Inputs(problem, p), list(online.parameters())))

    def run():
        results = []
        for online, target, inputs, weights in members:
            loss = module_loss(online, target, inputs)
            w_ih, w_hh, bias, _, w_q, b_q = torch.autograd.grad(loss, weights)
            results.append((loss.detach(), w_ih, w_hh, bias, w_q, b_q))
        return [torch.stack(parts) for parts in zip(*results, strict=True)]

    return run


def _unroll(params: tuple[Tensor, ...], x: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """One member's Q-values ``[S + 1, B, A]`` from x ``[S + 1, B, D]``, by a loop: nn.LSTM has no batching rule."""
    w_ih, w_hh, bias, w_q, b_q = params
    ys = []
    for gates_x in (x @ w_ih.t() + bias).unbind(0):
        i, f, g, o = (gates_x + h @ w_hh.t()).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys) @ w_q.t() + b_q


def vmapped(problem: Problem) -> Update:
    """The updates of the members, by vmap of grad_and_value."""
    gamma = problem.spec.gamma

    def loss(online, target, x, x_target, h, c, action, reward, going):
        q_target = _unroll(target, x_target, h, c).detach()
        return td_loss(_unroll(online, x, h, c), q_target, action, reward, going, gamma)

    def stacked(values: list[Tensor]) -> Tensor:
        return torch.stack(values)

    inputs = [Inputs(problem, p) for p in range(problem.shape.P)]
    names = ("online", "target", "h", "c", "action", "reward", "going")
    data = [stacked([getattr(i, name) for i in inputs]) for name in names]
    data[2], data[3] = data[2].squeeze(1), data[3].squeeze(1)
    online = tuple(w.detach() for w in problem.online if w is not None)
    target = tuple(w.detach() for w in problem.target if w is not None)
    step = torch.func.vmap(torch.func.grad_and_value(loss))

    def run():
        gradients, value = step(online, target, *data)
        return [value, *gradients]

    return run
