"""Gradients of `td_unroll` in the caller's buffers: the same numbers as fresh ones, in the caller's own memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import Case, Problem, draw, leaves
from torch import Tensor

from townlet import ops
from townlet.ops import RecurrentQParams

CASES = [
    Case(P=3, B=3, S=5, D=4, H=6, F=7, A=3),
    Case(P=1, B=6, S=5, D=5, H=17, F=None, dueling=False, legal=False),
    Case(P=2, B=9, S=4, D=3, H=33, F=20, A=4),
]
GAP = 11  # floats between what the buffers of two members hold


def rows(online: RecurrentQParams) -> tuple[Tensor, RecurrentQParams]:
    """One flat buffer [P, N] full of sevens and views into it like `online`, with gaps between them."""
    P = online.w_ih.shape[0]
    size = sum(w[0].numel() + GAP for w in online if w is not None)
    flat, views, at = torch.full((P, size), 7.0), [], 0
    for w in online:
        views.append(None if w is None else flat[:, at : at + w[0].numel()].view(w.shape))
        at += 0 if w is None else w[0].numel() + GAP
    return flat, RecurrentQParams(*views)


def gradients(p: Problem, incoming: Tensor | None = None, **into: Any) -> list[Tensor]:
    loss = ops.td_unroll(*p, **into).loss
    wanted = [v for v in (*p.online, p.batch.features_online) if v is not None and v.requires_grad]
    return list(torch.autograd.grad(loss, wanted, torch.ones_like(loss) if incoming is None else incoming))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_in_the_callers_memory(case: Case, bf16: bool) -> None:
    p = leaves(draw(case))
    if bf16:
        p = p.with_spec(compute_dtype=torch.bfloat16)
    flat, buffers = rows(p.online)
    fresh, own = gradients(p), gradients(p, grads=buffers)
    for a, b in zip(fresh, own, strict=True):
        assert torch.equal(a, b)
    there = [g for g in buffers if g is not None]
    assert [g.data_ptr() for g in own[:-1]] == [g.data_ptr() for g in there]
    assert any(bool(g.any()) for g in there)
    assert int((flat == 7.0).sum()) >= flat.shape[0] * GAP * len(there), "the gaps are nobody's"
    for g in there:
        g.fill_(7.0)
    assert bool((flat == 7.0).all())


def test_a_scaled_loss_gets_its_own_gradients() -> None:
    p = leaves(draw(CASES[0]))
    _, buffers = rows(p.online)
    incoming = torch.tensor([2.0, -0.5, 0.0])
    plain, scaled = gradients(p), gradients(p, incoming, grads=buffers)
    for g, a, b in zip(plain, scaled, [*(g for g in buffers if g is not None), None], strict=True):
        assert torch.allclose(a, g * incoming.view(-1, *[1] * (g.dim() - 1)), rtol=1e-6, atol=0)
        assert b is None or a.data_ptr() != b.data_ptr()


def test_untouched_without_gradients() -> None:
    p = draw(CASES[0])
    flat, buffers = rows(p.online)
    ops.td_unroll(*p, grads=buffers)
    with torch.no_grad():
        ops.td_unroll(*leaves(p), grads=buffers)
    assert bool((flat == 7.0).all())
    gradients(leaves(p), grads=buffers)
    assert not bool((flat == 7.0).all()), "control"


def test_the_reference_leaves_them_alone() -> None:
    p = leaves(draw(CASES[0])).with_spec(backend="reference")
    flat, buffers = rows(p.online)
    assert any(bool(g.any()) for g in gradients(p, grads=buffers))
    assert bool((flat == 7.0).all())


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    [
        ("w_hh", lambda g: g[:, :-1], ("grads.w_hh", "[3, 23, 6]", "[3, 24, 6]")),
        ("w_ih", lambda g: g.double(), ("grads.w_ih", "float64", "float32")),
        ("w_ih", lambda g: g.transpose(1, 2).contiguous().transpose(1, 2), ("grads.w_ih", "contiguous")),
        ("bias", lambda g: g[:1].expand_as(g), ("grads.bias", "strides [0, 1]")),
        ("b_adv", lambda g: g.clone().requires_grad_(), ("grads.b_adv", "requires_grad=True")),
        ("w_val", lambda g: None, ("grads.w_val", "None")),
    ],
)
def test_what_does_not_fit_is_named(name: str, broken: Any, words: tuple[str, ...]) -> None:
    p = leaves(draw(replace(CASES[0], dueling=True)))
    _, buffers = rows(p.online)
    with pytest.raises(ValueError) as error:
        ops.td_unroll(*p, grads=buffers._replace(**{name: broken(getattr(buffers, name))}))
    assert all(word in str(error.value) for word in words), error.value
