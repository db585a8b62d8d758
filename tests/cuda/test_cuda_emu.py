"""The CUDA kernels' own source, run on the host by the shim of tests/emu, against the float64 twin.

The cases are those of the CPU kernel: an orthogonal array over odd sizes, then every variant. What only a GPU shows
(speed, the memory model, cuBLAS) is not seen here: see docs/guides/gpu.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cuda_emu import emu, evaluate, lstm_unroll, pack, td_unroll
from op_cases import Case, Deviation, deviation, draw, draw_decided
from op_cases import evaluate as evaluate_twin
from op_values import (
    BASE,
    BFLOAT16_GRADIENTS,
    BFLOAT16_VALUES,
    VARIANTS,
    check,
    orthogonal_array,
)
from resident_cases import FORMS
from torch import Tensor

from townlet import reference


@pytest.fixture(params=[0, 1, 7], ids=["in order", "reversed", "random"])
def order(request: pytest.FixtureRequest) -> Iterator[int]:
    """The order in which the shim runs a block's threads."""
    emu.set_order(request.param)
    yield request.param
    emu.set_order(0)


def compare(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Deviation]:
    problem = draw_decided(case).with_spec(compute_dtype=dtype)
    incoming = torch.rand(case.P, generator=torch.Generator().manual_seed(7)) + 0.5
    got = evaluate(problem, incoming)
    want = evaluate_twin(reference.td_unroll, problem.to(torch.float64), incoming)
    assert got.keys() == want.keys()
    return {name: deviation(got[name], want[name]) for name in want}


@pytest.mark.parametrize("case", [c for c in orthogonal_array() if c.P * c.B * c.S * c.H < 4_000], ids=str)
def test_sizes(case: Case) -> None:
    check(compare(case))


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_variants(case: Case) -> None:
    check(compare(case))


RESIDENT = [  # GPU, what it runs, sizes
    ((90, 132), "one block", BASE),
    ((80, 108), "one block", replace(BASE, target=False, F=None)),
    ((90, 132), "cluster of 2", replace(BASE, P=1, B=5, S=4, burn_in=1, H=67)),
    ((80, 108), "cooperative grid", replace(BASE, P=1, B=3, S=3, burn_in=1, H=129)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("gpu", "form", "case"), RESIDENT, ids=[form for _, form, _ in RESIDENT])
def test_resident(gpu: tuple[int, int], form: str, case: Case, dtype: torch.dtype) -> None:
    """The whole operator with the resident kernels in it, in each of their forms."""
    bf16 = dtype == torch.bfloat16
    chains = 1 + case.target
    steps = evaluate(draw_decided(case).with_spec(compute_dtype=dtype), torch.ones(case.P))
    emu.set_gpu(*gpu)
    try:
        assert form in emu.unroll_plan(0, case.P, case.B, case.S + 1, case.H, bf16, chains, False)
        tolerances = (BFLOAT16_VALUES, BFLOAT16_GRADIENTS) if bf16 else ()
        check(compare(case, dtype), *tolerances)
        resident = evaluate(draw_decided(case).with_spec(compute_dtype=dtype), torch.ones(case.P))
    finally:
        emu.set_gpu(0, 0)
    assert not torch.equal(resident["h_final"], steps["h_final"]), "control: another order of summation ran"


@pytest.fixture
def h100() -> Iterator[None]:
    emu.set_gpu(90, 132)
    yield
    emu.set_gpu(0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("h100")
def test_a_form_that_is_asked_for_runs(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form, whatever the plan would pick; some blocks of the largest own no unit here."""
    bf16 = dtype == torch.bfloat16
    case = replace(BASE, P=1, B=3, S=3, burn_in=1, H=37)
    problem = draw_decided(case).with_spec(compute_dtype=dtype)
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "step" if form != "step" else "single")
    other = evaluate(problem, torch.ones(case.P))
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", form)
    for chains, backward in ((2, False), (1, True)):
        assert emu.unroll_plan(0, case.P, case.B, case.S + 1, case.H, bf16, chains, backward) == FORMS[form]
    check(compare(case, dtype), *((BFLOAT16_VALUES, BFLOAT16_GRADIENTS) if bf16 else ()))
    got = evaluate(problem, torch.ones(case.P))
    assert not torch.equal(got["h_final"], other["h_final"]), "control: another order of summation ran"


@pytest.mark.parametrize(
    "form", ["fast", "step:2", "stepx32", "single:2", "cluster", "cluster:1", "cluster:17", "cluster:8x8", "cluster:8x",
             "grid:", "grid:1", "grid:-4", "grid:4:32", "grid:99999"]
)  # fmt: skip
@pytest.mark.usefixtures("h100")
def test_a_form_that_does_not_exist_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", form)
    with pytest.raises(RuntimeError, match=rf"TOWNLET_CUDA_UNROLL is '{form}'; expected step, single, cluster:BLOCKS"):
        td_unroll(draw(BASE))
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "")
    td_unroll(draw(BASE))


@pytest.mark.parametrize(
    ("form", "gpu", "B", "H", "bf16", "expected"),
    [
        ("cluster:2", (80, 108), 1, 64, True, "a form without clusters, which sm_80 lacks"),
        ("single", (90, 132), 1, 129, True, "a form with at most 128 units to a block; it has 136 (P = 1, B = 1, T ="),
        ("single:1x32", (90, 132), 1, 65, True, "a form with at most 64 units to a block; it has 72"),
        (
            "single",
            (90, 132),
            1,
            128,
            False,
            "a form that this GPU can launch; it needs 272 of 227 KB of shared memory",
        ),
        ("cluster:16", (90, 132), 1, 64, True, "a form that this GPU can launch"),
        (
            "grid:9",
            (80, 108),
            97,
            256,
            True,
            "a form whose blocks run at the same time, each on an SM of its own; it has 126",
        ),
    ],
)
def test_a_form_that_does_not_fit_is_an_error(
    form: str, gpu: tuple[int, int], B: int, H: int, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emu.set_gpu(*gpu)
    try:
        emu.set_clusters(16, 0)
        plan = emu.unroll_plan(0, 1, B, 3, H, bf16, 2, False)
        monkeypatch.setenv("TOWNLET_CUDA_UNROLL", form)
        with pytest.raises(RuntimeError, match=rf"TOWNLET_CUDA_UNROLL is '{form}'; expected {re.escape(expected)}"):
            emu.unroll_plan(0, 1, B, 3, H, bf16, 2, False)
    finally:
        emu.set_gpu(0, 0)
    assert plan, "control: the plan has a form for this size"


@pytest.mark.usefixtures("h100")
def test_where_no_cluster_of_16_fits_another_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """H = 360 in float32 needs 16 blocks of a cluster, for which some GPUs have no GPC with enough SMs."""
    P, B, T, H = 1, 1, 2, 360
    sizes = (0, P, B, T, H, False, 1, False)
    assert "cluster of 16 blocks" in emu.unroll_plan(*sizes)
    emu.set_clusters(16, 0)
    assert "cooperative grid" in emu.unroll_plan(*sizes)
    test_lstm_unroll(P, B, T, 3, H, True)


def test_lstm_unroll_resident() -> None:
    emu.set_gpu(90, 132)
    try:
        test_lstm_unroll(2, 3, 5, 4, 17, True)
    finally:
        emu.set_gpu(0, 0)


def test_schedules(order: int) -> None:
    check(compare(replace(BASE, B=35, H=37)))


def test_every_barrier_is_needed() -> None:
    """Each barrier of these kernels left out in turn changes a result, in one of the orders."""
    case = replace(BASE, P=1, B=35, H=37)
    problem = draw_decided(case)

    def results() -> list[Tensor]:
        out, gradients = td_unroll(problem)
        return [*out, *gradients]

    want = results()
    places = {i: emu.site(i) for i in range(emu.sites())}
    mine = [i for i, place in places.items() if "step.cu" in place or "td.cu" in place]
    assert len(mine) >= 6
    for i in mine:
        caught = False
        for order in (0, 1):
            emu.set_order(order)
            emu.leave_out(i)
            try:
                caught |= not all(torch.equal(a, b) for a, b in zip(results(), want, strict=True))
            finally:
                emu.leave_out(-1)
                emu.set_order(0)
        assert caught, f"the barrier at {places[i]} can be left out"
    assert all(torch.equal(a, b) for a, b in zip(results(), want, strict=True)), "control"


@pytest.mark.parametrize("case", [BASE, replace(BASE, F=None, B=33, H=40)], ids=str)
def test_bfloat16(case: Case) -> None:
    check(compare(case, torch.bfloat16), BFLOAT16_VALUES, BFLOAT16_GRADIENTS)


def test_what_is_not_asked_for_is_not_computed() -> None:
    problem = draw(BASE)
    whole, (d_features, *d_weights) = td_unroll(problem)
    for param_grads, feature_grads in ((False, False), (True, False), (False, True)):
        out, (features, *weights) = td_unroll(problem, param_grads, feature_grads)
        assert all(torch.equal(a, b) for a, b in zip(out, whole, strict=True))
        assert torch.equal(features, d_features) if feature_grads else features.numel() == 0
        for got, want in zip(weights, d_weights, strict=True):
            assert torch.equal(got, want) if param_grads else got.numel() == 0


def test_an_action_out_of_range_makes_its_members_loss_nan() -> None:
    problem = draw(BASE)
    valid = reference.valid_transitions(problem.batch)
    member, sequence, t = (int(i) for i in valid.nonzero()[-1])
    action = problem.batch.action.clone()
    action[member, sequence, t] = BASE.A
    broken, _ = td_unroll(problem._replace(batch=problem.batch._replace(action=action)))
    nan = broken.loss.isnan()
    assert bool(nan[member])
    assert int(nan.sum()) == 1
    action[member, sequence, t] = BASE.A - 1
    assert not bool(td_unroll(problem._replace(batch=problem.batch._replace(action=action)))[0].loss.isnan().any())


def test_resets_and_the_carried_state_matter() -> None:
    """Controls: the comparison sees a dropped state and a moved reset."""
    problem = draw_decided(BASE)
    batch = problem.batch
    want = td_unroll(problem)[0].td_error
    dropped = batch._replace(h0=torch.zeros_like(batch.h0), c0=torch.zeros_like(batch.c0))
    moved = batch._replace(reset=batch.reset.roll(1, 2))
    for other in (dropped, moved):
        assert deviation(td_unroll(problem._replace(batch=other))[0].td_error, want).scaled > 1e-3


@pytest.mark.parametrize(("P", "B", "T", "D", "H"), [(1, 1, 1, 1, 1), (2, 3, 5, 4, 17), (1, 33, 3, 9, 33)])
@pytest.mark.parametrize("resets", [True, False])
def test_lstm_unroll(P: int, B: int, T: int, D: int, H: int, resets: bool) -> None:
    g = torch.Generator().manual_seed(P + B + T + D + H)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    inputs = [
        normal(P, B, T, D), normal(P, B, H, scale=0.5), normal(P, B, H, scale=0.5),
        normal(P, 4 * H, D, scale=0.4), normal(P, 4 * H, H, scale=0.4), normal(P, 4 * H, scale=0.4),
    ]  # fmt: skip
    reset = torch.rand(P, B, T, generator=g) < 0.3 if resets else None
    outer = [normal(P, B, T, H), normal(P, B, H), normal(P, B, H)]
    exact = [v.double().requires_grad_() for v in inputs]
    out = reference.lstm_unroll(*exact, reset)
    want = [*out, *torch.autograd.grad(sum((a * b.double()).sum() for a, b in zip(out, outer, strict=True)), exact)]
    got = lstm_unroll(*inputs, reset, *outer)
    for a, b in zip(got, want, strict=True):
        assert deviation(a, b.detach()).scaled < 2e-5


@pytest.mark.parametrize("resets", [True, False])
def test_lstm_step(resets: bool) -> None:
    problem = draw(replace(BASE, B=35))
    w, b = problem.online, problem.batch
    reset = b.reset[:, :, 0] if resets else None
    got = emu.lstm_step(b.features_online[:, :, 1], b.h0, b.c0, pack(w), reset)
    want = reference.lstm_step(b.features_online[:, :, 1], b.h0, b.c0, w.w_ih, w.w_hh, w.bias, reset)
    for a, c in zip(got, want, strict=True):
        assert deviation(a, c.double()).scaled < 5e-6


def test_more_members_than_a_grid_takes_are_named() -> None:
    P = 32768
    x, state = torch.zeros(P, 1, 1, 1), torch.zeros(P, 1, 1)
    weights = torch.zeros(P, 4, 1), torch.zeros(P, 4, 1), torch.zeros(P, 4)
    with pytest.raises(RuntimeError, match=r"at most 32767 members .* got P = 32768, B = 1"):
        emu.lstm_unroll(x, state, state, *weights, None, False)
