"""`lstm_unroll` and `lstm_step` against their float64 twins: every value and gradient, odd sizes."""

from __future__ import annotations

import pytest
import torch
from op_cases import Case, deviation, draw
from op_values import GRADIENTS, ISAS, UNROLL_SIZES, check, runs_with, unroll, unroll_case

from townlet import ops, reference


@pytest.mark.parametrize("size", UNROLL_SIZES, ids=str)
def test_unroll_sizes(size: tuple[int, int, int, int, int]) -> None:
    inputs, reset, incoming = unroll_case(*size, seed=sum(size))
    for r in (reset, None) if size[1] <= 17 else (reset,):
        got = unroll(ops.lstm_unroll, inputs, r, incoming)
        want = unroll(reference.lstm_unroll, [v.double() for v in inputs], r, incoming)
        assert got.keys() == want.keys()
        assert len(got) == 9
        check({name: deviation(got[name], want[name]) for name in want})


@pytest.mark.parametrize("used", [0, 1, 2])
def test_unroll_gradient_of_one_result(used: int) -> None:
    """A loss on y, h_T or c_T alone: the other incoming gradients are absent."""
    inputs, reset, incoming = unroll_case(2, 3, 5, 4, 6, seed=1)
    grads = []
    for f, dtype in ((ops.lstm_unroll, torch.float32), (reference.lstm_unroll, torch.float64)):
        fresh = [v.to(dtype).requires_grad_() for v in (u.clone() for u in inputs)]
        out = f(*fresh, reset)[used]
        grads.append(torch.autograd.grad((out * incoming[used]).sum(), fresh))
    for got, want in zip(*grads, strict=True):
        assert deviation(got, want).scaled < GRADIENTS.scaled


@pytest.mark.parametrize("size", UNROLL_SIZES[::3], ids=str)
def test_step(size: tuple[int, int, int, int, int]) -> None:
    """Unpacked, packed with a head, and the twin."""
    P, E, _, D, H = size
    (x, h, c, w_ih, w_hh, bias), reset, _ = unroll_case(P, E, 1, D, H, seed=9)
    for r in (reset[:, :, 0], None):
        want = reference.lstm_step(*(v.double() for v in (x[:, :, 0], h, c, w_ih, w_hh, bias)), r)
        weights = draw(Case(P=P, D=D, H=H)).online._replace(w_ih=w_ih, w_hh=w_hh, bias=bias)
        for got in (
            ops.lstm_step(x[:, :, 0], h, c, w_ih, w_hh, bias, r),
            ops.lstm_step(x[:, :, 0], h, c, ops.pack(weights), reset=r),
        ):
            check({str(i): deviation(got[i], want[i]) for i in (0, 1)})


CHILD = """
import test_lstm_values as t
for size in t.UNROLL_SIZES[1::5]:
    t.test_unroll_sizes(size)
    t.test_step(size)
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    runs_with(isa, CHILD)
