"""The oracle against something different in structure: `torch.nn.LSTM` one sequence at a time, returns in floats.

The twin steps all members and sequences together through time with masks. Here each sequence is cut at its resets and
at the end of burn-in, the pieces go through `torch.nn.LSTM`, and targets are scalar loops that walk the definition.
Both are compared in float64, values and gradients, over every variant.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from op_cases import Case, Problem, deviation, draw_decided, evaluate
from torch import Tensor
from torch.func import functional_call

from townlet import reference
from townlet.ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec


def walk(p: RecurrentQParams, m: int, x: Tensor, h: Tensor, c: Tensor, cuts: list[int], detach_at: int):
    """LSTM outputs [S+1, H] of one sequence x [S+1, D]; the state is zeroed at `cuts`, made constant at `detach_at`."""
    D, H = x.shape[1], h.shape[0]
    lstm = torch.nn.LSTM(D, H, batch_first=True, dtype=x.dtype)
    weights = {
        "weight_ih_l0": p.w_ih[m],
        "weight_hh_l0": p.w_hh[m],
        "bias_ih_l0": p.bias[m],
        "bias_hh_l0": torch.zeros_like(p.bias[m]),
    }
    edges = sorted({0, len(x), detach_at, *cuts})
    pieces = []
    for start, stop in pairwise(edges):
        if start == detach_at:
            h, c = h.detach(), c.detach()
        if start in cuts:
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        y, (hn, cn) = functional_call(lstm, weights, (x[None, start:stop], (h[None, None], c[None, None])))
        pieces.append(y[0])
        h, c = hn[0, 0], cn[0, 0]
    return torch.cat(pieces), h, c


def q_values(p: RecurrentQParams, m: int, y: Tensor) -> Tensor:
    """The head by torch's own linear layers: y [S+1, H] -> [S+1, A]."""
    if p.w_fc is not None and p.b_fc is not None:
        y = torch.nn.functional.linear(y, p.w_fc[m], p.b_fc[m]).relu()
    advantage = torch.nn.functional.linear(y, p.w_adv[m], p.b_adv[m])
    if p.w_val is None or p.b_val is None:
        return advantage
    value = torch.nn.functional.linear(y, p.w_val[m], p.b_val[m])
    return value + advantage - advantage.sum(-1, keepdim=True) / advantage.shape[-1]


def squash(x: float, eps: float) -> float:
    return x if eps == 0 else math.copysign(math.sqrt(abs(x) + 1) - 1, x) + eps * x


def unsquash(y: float, eps: float) -> float:
    """The inverse by bisection: nothing of a closed form to get wrong."""
    if eps == 0:
        return y
    low, high = -1e9, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if squash(middle, eps) < y else (low, middle)
    return (low + high) / 2


def independent(
    online: RecurrentQParams, target: RecurrentQParams | None, batch: SequenceBatch, spec: TDSpec
) -> TDOutput:
    """td_unroll by the definitions, one member and one sequence at a time."""
    P, B, S = batch.action.shape
    L = spec.burn_in
    zeros = torch.zeros(P, B, S, dtype=batch.reward.dtype)
    td_error, q_taken, priority = zeros.clone(), zeros.clone(), zeros[:, :, 0].clone()
    finals, losses = [], []
    for m in range(P):
        gamma = float(spec.gamma[m]) if isinstance(spec.gamma, Tensor) else spec.gamma
        terms: list[Tensor] = []
        count = 0
        for b in range(B):
            cuts = [t for t in range(S + 1) if batch.reset[m, b, t]]
            y, h, c = walk(online, m, batch.features_online[m, b], batch.h0[m, b], batch.c0[m, b], cuts, L)
            finals.append((h.detach(), c.detach()))
            q = q_values(online, m, y)
            q_other = q
            if target is not None:
                assert batch.features_target is not None
                y, _, _ = walk(target, m, batch.features_target[m, b], batch.h0[m, b], batch.c0[m, b], cuts, L)
                q_other = q_values(target, m, y)

            def bootstrap(u: int, m: int = m, b: int = b, q: Tensor = q, q_other: Tensor = q_other) -> float:
                actions = [a for a in range(q.shape[1]) if batch.legal is None or bool(batch.legal[m, b, u, a])]
                chooser = (q if spec.double_q else q_other)[u].detach().tolist()
                best = max(actions or range(q.shape[1]), key=chooser.__getitem__)  # max keeps the first of equals
                return unsquash(float(q_other[u, best].detach()), spec.rescale_eps)

            def is_valid(t: int, m: int = m, b: int = b) -> bool:
                cut = bool(batch.reset[m, b, t + 1]) and not bool(batch.terminated[m, b, t])
                return bool(batch.mask[m, b, t]) and not cut

            errors = []
            for t in range(S):
                if not is_valid(t):
                    continue
                taken = q[t, int(batch.action[m, b, t])]
                q_taken[m, b, t] = taken.detach()
                if t < L:
                    continue
                total, k, ended = 0.0, 0, False
                while k < spec.n_step and t + k < S and is_valid(t + k) and not ended:
                    total += gamma**k * float(batch.reward[m, b, t + k])
                    ended = bool(batch.terminated[m, b, t + k])
                    k += 1
                if not ended:
                    total += gamma**k * bootstrap(t + k)
                error = squash(total, spec.rescale_eps) - taken
                errors.append(abs(float(error.detach())))
                td_error[m, b, t] = error.detach()
                zero = torch.zeros_like(error)
                if spec.loss == "mse":
                    each = 0.5 * torch.nn.functional.mse_loss(error, zero)
                else:
                    each = torch.nn.functional.huber_loss(error, zero, delta=spec.huber_delta)
                terms.append(each * float(batch.weight[m, b]))
                count += 1
            if errors:
                priority[m, b] = spec.eta * max(errors) + (1 - spec.eta) * sum(errors) / len(errors)
        losses.append(sum(terms, start=0.0 * online.bias[m].sum()) / max(count, 1))
    h, c = (torch.stack([f[i] for f in finals]).view(P, B, -1) for i in (0, 1))
    return TDOutput(torch.stack(losses), td_error, priority, q_taken, h, c)


BASE = Case(B=4, S=6)
CASES = [
    BASE,
    replace(BASE, target=False),
    replace(BASE, target=False, double_q=False, burn_in=0),
    replace(BASE, double_q=False),
    replace(BASE, burn_in=0, n_step=1),
    replace(BASE, burn_in=5, n_step=1),
    replace(BASE, n_step=5),
    replace(BASE, n_step=40),
    replace(BASE, dueling=False, F=None, rescale_eps=0.0),
    replace(BASE, F=None),
    replace(BASE, dueling=False),
    replace(BASE, loss="mse", weights=False),
    replace(BASE, resets=False, padding=False),
    replace(BASE, legal=False, member_gamma=False),
    replace(BASE, terminations=False),
    replace(BASE, A=1),
    replace(BASE, B=1, S=1, burn_in=0),
    replace(BASE, P=1, B=2, S=12, D=1, H=1, F=1, A=2, eta=0.3),
    replace(BASE, P=3, B=3, S=9, D=3, H=9, F=5, A=6, rescale_eps=0.3, huber_delta=0.2, eta=0.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_twin_equals_independent_implementation(case: Case) -> None:
    """Values and gradients; observed worst scaled deviation 2.9e-15."""
    problem: Problem = draw_decided(case).to(torch.float64)
    g = torch.Generator().manual_seed(1)
    incoming = torch.rand(case.P, generator=g, dtype=torch.float64) + 0.5
    got = evaluate(reference.td_unroll, problem, incoming)
    want = evaluate(independent, problem, incoming)
    assert got.keys() == want.keys()
    for name in want:
        assert deviation(got[name], want[name]).scaled < 1e-12, name


def test_comparison_sees_a_difference() -> None:
    """Control: another discount, 1 percent away, is seen in every result that depends on it."""
    problem = draw_decided(replace(BASE, member_gamma=False)).to(torch.float64)
    got = evaluate(reference.td_unroll, problem.with_spec(gamma=0.96))
    want = evaluate(independent, problem)
    for name in ("loss", "td_error", "priority", "grad.w_hh", "grad.features_online"):
        assert deviation(got[name], want[name]).scaled > 1e-5, name
    assert deviation(got["q_taken"], want["q_taken"]).scaled < 1e-12
