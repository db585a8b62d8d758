"""`pack`: a packed handle is the target it was made from, as it was then."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import Case, assert_same_bits, draw, draw_decided, evaluate, kernel_td_unroll

from townlet import ops, reference
from townlet.ops import TDOutput

CASE = Case(P=3, B=5, S=6)
LARGE = Case(P=3, B=41, S=13, D=19, H=37, F=21, A=5)  # sizes that fill no vector


@pytest.mark.parametrize("case", [CASE, LARGE, replace(CASE, F=None, dueling=False)], ids=str)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_same_bits_as_the_plain_target(case: Case, bf16: bool) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float32
    problem = draw(case).with_spec(compute_dtype=dtype)
    assert problem.target is not None
    handle = ops.pack(problem.target, dtype) if bf16 else ops.pack(problem.target)

    def with_handle(online, target, batch, spec) -> TDOutput:
        return kernel_td_unroll(online, handle, batch, spec)

    assert_same_bits(evaluate(with_handle, problem), evaluate(kernel_td_unroll, problem))


def test_is_a_snapshot() -> None:
    problem = draw(CASE)
    assert problem.target is not None
    handle = ops.pack(problem.target)
    before = kernel_td_unroll(problem.online, handle, problem.batch, problem.spec)
    for v in problem.target:
        if v is not None:
            v.add_(0.5)
    after = kernel_td_unroll(problem.online, handle, problem.batch, problem.spec)
    assert torch.equal(after.td_error, before.td_error)
    fresh = kernel_td_unroll(problem.online, ops.pack(problem.target), problem.batch, problem.spec)
    assert not torch.equal(fresh.td_error, before.td_error)  # control: the change does matter
    assert torch.equal(fresh.td_error, kernel_td_unroll(*problem).td_error)


def test_no_cache_by_identity() -> None:
    """A plain target changed in place between two calls is read anew."""
    problem = draw(CASE)
    assert problem.target is not None
    first = kernel_td_unroll(*problem).td_error
    problem.target.b_adv[:, 0] += 3.0
    second = kernel_td_unroll(*problem).td_error
    assert not torch.equal(first, second)
    copy = problem.map(lambda v: v.clone())
    assert torch.equal(second, kernel_td_unroll(*copy).td_error)


def test_of_another_precision_is_refused() -> None:
    problem = draw(CASE)
    assert problem.target is not None
    handle = ops.pack(problem.target, torch.bfloat16)
    with pytest.raises(ValueError, match=r"target is packed for torch\.bfloat16"):
        kernel_td_unroll(problem.online, handle, problem.batch, problem.spec)


def test_of_other_sizes_is_refused() -> None:
    problem = draw(CASE)
    other = draw(replace(CASE, H=5)).target
    assert other is not None
    with pytest.raises(ValueError, match="target has"):
        kernel_td_unroll(problem.online, ops.pack(other), problem.batch, problem.spec)


def test_through_the_reference() -> None:
    """float64 and backend='reference' accept a handle too."""
    problem = draw_decided(CASE)
    assert problem.target is not None
    want = reference.td_unroll(*problem).td_error
    spec = replace(problem.spec, backend="reference")
    got = ops.td_unroll(problem.online, ops.pack(problem.target), problem.batch, spec).td_error
    assert torch.equal(got, want)


def test_twin() -> None:
    """The twin's handle is a snapshot for the twin."""
    problem = draw(CASE)
    assert problem.target is not None
    handle = reference.pack(problem.target)
    want = reference.td_unroll(*problem).td_error
    problem.target.w_adv.add_(1.0)
    assert torch.equal(reference.td_unroll(problem.online, handle, problem.batch, problem.spec).td_error, want)
    assert not torch.equal(reference.td_unroll(*problem).td_error, want)


def test_errors_name_the_weight() -> None:
    p = draw(CASE).online
    for broken in (p._replace(w_hh=p.w_hh[:, :-1]), p._replace(b_fc=None), p._replace(b_adv=p.b_adv.double())):
        with pytest.raises(ValueError, match=r"w_hh|b_fc|b_adv"):
            ops.pack(broken)
