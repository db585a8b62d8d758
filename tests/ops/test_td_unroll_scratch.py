"""The scratch memory of td_unroll: what the function says is what a call takes, and it does not grow as it must not."""

from __future__ import annotations

import pytest
import torch
from op_cases import Case, draw

from townlet import ops
from townlet.ops import RecurrentQParams

SIZES = [(1, 2, 3, 5, 7, 2), (2, 9, 11, 16, 33, 4), (1, 32, 16, 64, 128, 6)]


@pytest.mark.parametrize(("P", "B", "S", "D", "H", "A"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("with_target", [True, False])
def test_the_statement_is_what_a_call_takes(P, B, S, D, H, A, dtype, wanted, with_target) -> None:
    case = Case(P=P, B=B, S=S, D=D, H=H, A=A, F=9, dueling=True, burn_in=1, target=with_target)
    online, target, batch, spec = draw(case)
    params, features = wanted
    online = RecurrentQParams(*(None if w is None else w.detach().requires_grad_(params) for w in online))
    batch = batch._replace(features_online=batch.features_online.detach().requires_grad_(features))
    spec = spec.__class__(**{**spec.__dict__, "compute_dtype": dtype})
    packed = None if target is None else ops.pack(target, dtype)
    ops.td_unroll(online, packed, batch, spec)
    says = ops.td_unroll_scratch(
        P, B, S, D, H, A, F=9, dueling=True, burn_in=1, compute_dtype=dtype, param_grads=params, feature_grads=features
    )
    assert torch.ops.townlet.last_scratch() == says
    # control: another size is another statement
    assert says != ops.td_unroll_scratch(P, B, S + 1, D, H, A, F=9, dueling=True, burn_in=1, compute_dtype=dtype)


def test_one_buffer_of_gates_over_time_and_none_without_gradients() -> None:
    P, B, D, H, A = 1, 32, 64, 256, 6

    def per_step(**wanted: bool) -> float:  # floats a sequence and step
        two, one = (ops.td_unroll_scratch(P, B, S, D, H, A, **wanted) for S in (480, 240))
        return (two - one) / (4 * B * 240)

    operands = D + 16 + H + H + H  # inputs with padding, state, cell, outputs
    head = 8 * 16 + 3 * H
    assert operands + 4 * H < per_step() < operands + 4 * H + head  # a second buffer of gates would be 4H more
    assert per_step(param_grads=False) < operands + head < operands + 4 * H


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="H is 0; expected at least 1"):
        ops.td_unroll_scratch(1, 1, 1, 1, 0, 1)
    with pytest.raises(ValueError, match="burn_in is 3; expected 0 <= burn_in < S = 3"):
        ops.td_unroll_scratch(1, 1, 3, 1, 1, 1, burn_in=3)
