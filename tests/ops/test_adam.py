"""`ops.adam_step` against its twin in float64, whatever the size, the threads and the members beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from townlet import ops, reference

State = list[Tensor]
BETAS, EPS = (0.9, 0.999), 1e-5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def problem(P: int, N: int, dtype: torch.dtype = torch.float32) -> tuple[State, list[Tensor], Tensor]:
    """(weights, m, v), gradients of four steps with very different sizes, lr. Small weights, so that a step shows."""
    gradients = [torch.randn(P, N) * 10.0**k for k in (-3, 0, 1, -1)]
    state = [torch.randn(P, N) * 1e-2, torch.zeros(P, N), torch.zeros(P, N)]
    lr = torch.linspace(1e-3, 1e-2, P)
    return [v.to(dtype) for v in state], [g.to(dtype) for g in gradients], lr.to(dtype)


def steps(op: Callable[..., Tensor], P: int, N: int, clip: float | None, dtype: torch.dtype) -> tuple[State, Tensor]:
    """(movement of the weights, m, v), norms [4, P] of four steps."""
    torch.manual_seed(0)
    state, gradients, lr = problem(P, N, dtype)
    start = state[0].clone()
    limit = None if clip is None else torch.full((P,), clip * N**0.5, dtype=dtype)
    norms = [op(*state, g, lr, limit, BETAS, EPS, k + 1) for k, g in enumerate(gradients)]
    return [state[0] - start, *state[1:]], torch.stack(norms)


def deviation(got: State, expected: State) -> float:
    """Largest relative L2 error of a tensor."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


TOLERANCE = 2e-6  # observed 4e-7


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(("P", "N"), [(1, 1), (3, 17), (2, 127), (1, 16384), (2, 16385), (3, 40001)])
def test_equals_the_twin_in_double_precision(P: int, N: int, clip: float | None) -> None:
    expected, norms = steps(reference.adam_step, P, N, clip, torch.float64)
    got, own = steps(ops.adam_step, P, N, clip, torch.float32)
    assert deviation(got, expected) < TOLERANCE
    assert torch.allclose(own.double(), norms, rtol=1e-6)  # observed 1e-7


def mutant(kind: str) -> Callable[..., Tensor]:
    """The twin with one thing wrong."""

    def step(weights: Tensor, m: Tensor, v: Tensor, g: Tensor, lr: Tensor, clip: Any, betas: Any, eps: float, n: int):
        if kind == "clipped per number":
            assert clip is not None
            g, clip = g.clamp(-clip.max(), clip.max()), None
        if kind == "never clipped":
            clip = None
        if kind == "one rate for all":
            lr = lr[:1].expand_as(lr)
        if kind == "bias of step 1 for ever":
            n = 1
        if kind == "eps outside of nothing":
            eps = 0.0
        if kind == "betas swapped":
            betas = betas[::-1]
        if kind == "one norm for all":
            total = g.norm()
            g, clip = g * (clip.max() / total).clamp(max=1.0), None
        return reference.adam_step(weights, m, v, g, lr, clip, betas, eps, n)

    return step


@pytest.mark.parametrize(
    "kind",
    [
        "clipped per number", "never clipped", "one rate for all", "bias of step 1 for ever", "eps outside of nothing",
        "betas swapped", "one norm for all",
    ],
)  # fmt: skip
def test_would_see_a_wrong_step(kind: str) -> None:
    expected, _ = steps(reference.adam_step, 3, 40001, 0.5, torch.float64)
    wrong, _ = steps(mutant(kind), 3, 40001, 0.5, torch.float64)
    assert deviation(wrong, expected) > 2 * TOLERANCE


def test_threads_and_neighbours_leave_the_bits_alone() -> None:
    torch.manual_seed(0)
    state, (g, *_), lr = problem(3, 50_003)
    clip = torch.full((3,), 0.1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            own = [v.clone() for v in state]
            results.append([*own, ops.adam_step(*own, g, lr, clip, BETAS, EPS, 1)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for p in range(3):
        alone = [v[p : p + 1].clone() for v in state]
        norm = ops.adam_step(*alone, g[p : p + 1], lr[p : p + 1], clip[p : p + 1], BETAS, EPS, 1)
        assert all(torch.equal(a[0], b[p]) for a, b in zip([*alone, norm], results[0], strict=True))
    assert not torch.equal(results[0][0], state[0]), "control: it moved"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("op", [ops.adam_step, reference.adam_step])
def test_writes_nothing_where_a_norm_is_not_finite(value: float, op: Callable[..., Tensor]) -> None:
    state, (g, *_), lr = problem(2, 100)
    g[1, 50] = value
    before = [v.clone() for v in state]
    norm = op(*state, g, lr, None, BETAS, EPS, 1)
    assert norm.isfinite().tolist() == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    g[1, 50] = 0.0
    op(*state, g, lr, None, BETAS, EPS, 1)
    assert not torch.equal(before[0], state[0]), "control"


def test_counts_as_a_write() -> None:
    """Whoever watches a tensor's version (autograd, the population's packed weights) has to see the step."""
    state, (g, *_), lr = problem(2, 100)
    view = state[0][:, :10].detach()
    versions = [v._version for v in (*state, view)]
    ops.adam_step(*state, g, lr, None, BETAS, EPS, 1)
    assert all(v._version > before for v, before in zip((*state, view), versions, strict=True))
    assert g._version == 0


def test_errors_name_the_argument() -> None:
    state, (g, *_), lr = problem(2, 10)
    good: dict[str, Any] = {"weights": state[0], "m": state[1], "v": state[2], "grad": g, "lr": lr, "clip_norm": None}
    for name, value, message in (
        ("weights", torch.zeros(5), r"weights has shape \[5\]; expected \[P, N\]"),
        ("m", torch.zeros(2, 9), r"m has shape \[2, 9\]"),
        ("v", torch.zeros(10, 2).T, "v has strides"),
        ("grad", g.double(), "grad"),
        ("lr", torch.zeros(3), r"lr has shape \[3\]"),
        ("clip_norm", torch.zeros(2, 1), r"clip_norm has shape \[2, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.adam_step(**{**good, name: value}, betas=BETAS, eps=EPS, step=1)
    with pytest.raises(ValueError, match="step is 0"):
        ops.adam_step(**good, betas=BETAS, eps=EPS, step=0)
