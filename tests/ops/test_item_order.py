"""What an operator computes does not depend on the order in which its parallel items run.

With several threads any order can happen. Here the items run from the first to the last and from the last to the
first, and every bit has to be the same. An item that writes into its neighbour's scratch shows in one of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from op_cases import Case, draw_decided, evaluate, kernel_td_unroll
from torch import Tensor

from townlet import ops
from townlet.ops import adam_step

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Case(P=16, B=1, S=3, D=3, H=5, F=None, A=2, burn_in=0)
"""One sequence for each member and few units: a shard is as small as one can be."""

CASES = [
    TINY,
    Case(P=16, B=1, S=7, D=2, H=3, F=3, A=2, burn_in=2),
    Case(P=5, B=17, S=4, D=9, H=17, F=8, A=3, burn_in=1),
    Case(P=2, B=33, S=9, D=33, H=40, F=20, A=6, burn_in=3),
]


@pytest.fixture
def in_both_orders() -> Iterator[Callable[[Callable[[], dict[str, Tensor]]], list[dict[str, Tensor]]]]:
    """Runs a call with the first item first and with the last item first; the order is put back afterwards."""

    def run(call: Callable[[], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        results = []
        for reverse in (False, True):
            torch.ops.townlet.last_item_first(reverse)
            results.append(call())
        return results

    yield run
    torch.ops.townlet.last_item_first(False)


def same(results: list[dict[str, Tensor]]) -> bool:
    first, second = results
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_items_run_in_the_order_that_is_asked_for(in_both_orders: Callable) -> None:
    """Control: without it the tests below would compare one order with itself."""
    orders: list[str] = []
    in_both_orders(lambda: orders.append(torch.ops.townlet.item_order(5)) or {})
    assert orders == ["0 1 2 3 4", "4 3 2 1 0"]
    assert torch.ops.townlet.item_order(0) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_td_unroll(in_both_orders: Callable, case: Case, dtype: torch.dtype) -> None:
    problem = draw_decided(case).with_spec(compute_dtype=dtype)
    incoming = torch.linspace(0.5, 1.5, case.P)
    results = in_both_orders(lambda: evaluate(kernel_td_unroll, problem, incoming))
    assert same(results)
    assert not torch.equal(results[0]["td_error"][0], results[0]["td_error"][1]), "control: members differ"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lstm_unroll(in_both_orders: Callable, case: Case) -> None:
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).mul_(0.3).requires_grad_()

    P, B, T, D, H = case.P, case.B, case.S, case.D, case.H
    inputs = [draw(P, B, T, D), draw(P, B, H), draw(P, B, H), draw(P, 4 * H, D), draw(P, 4 * H, H), draw(P, 4 * H)]

    def call() -> dict[str, Tensor]:
        y, h, c = ops.lstm_unroll(*inputs)
        grads = torch.autograd.grad((y.square().sum() + h.sum() + c.sum()), inputs)
        return {str(i): v.detach() for i, v in enumerate((y, h, c, *grads))}

    assert same(in_both_orders(call))


def test_adam_step(in_both_orders: Callable) -> None:
    g = torch.Generator().manual_seed(4)
    P, N = 3, 70_001
    start = [torch.randn(P, N, generator=g) for _ in range(2)]

    def call() -> dict[str, Tensor]:
        weights, m, v = start[0].clone(), torch.zeros(P, N), torch.zeros(P, N)
        lr, clip = torch.full((P,), 1e-3), torch.full((P,), 0.5)
        norm = adam_step(weights, m, v, start[1], lr, clip, (0.9, 0.999), 1e-5, 1)
        return {"weights": weights, "m": m, "v": v, "norm": norm}

    assert same(in_both_orders(call))
