"""`td_unroll` against its float64 twin: every value and gradient, odd sizes, every variant.

Sizes come from an orthogonal array, in which every pair of levels of every two sizes meets once. The cases and the
tolerances are those of `op_values`. Cases avoid arg-max ties and ReLU kinks (`draw_decided`), where float32 and float64
may rightly differ.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import Case, Deviation, deviation, draw, draw_decided, evaluate, kernel_td_unroll
from op_values import (
    BASE,
    BFLOAT16_GRADIENTS,
    BFLOAT16_VALUES,
    GRADIENTS,
    ISAS,
    ROUNDED,
    VALUES,
    VARIANTS,
    check,
    orthogonal_array,
    runs_with,
)

from townlet import reference


def compare(case: Case) -> dict[str, Deviation]:
    """Deviation of every output and gradient of one case, under a random incoming gradient."""
    problem = draw_decided(case)
    incoming = torch.rand(case.P, generator=torch.Generator().manual_seed(7)) + 0.5
    got = evaluate(kernel_td_unroll, problem, incoming)
    want = evaluate(reference.td_unroll, problem.to(torch.float64), incoming)
    assert got.keys() == want.keys()
    return {name: deviation(got[name], want[name]) for name in want}


def test_array_is_orthogonal() -> None:
    """Every pair of sizes of every two of B, S, D, H meets."""
    cases = orthogonal_array()
    for a, b in ("BS", "BD", "BH", "SD", "SH", "DH"):
        assert len({(getattr(c, a), getattr(c, b)) for c in cases}) == 25


@pytest.mark.parametrize("case", orthogonal_array(), ids=lambda c: f"P{c.P}-B{c.B}-S{c.S}-D{c.D}-H{c.H}-F{c.F}-A{c.A}")
def test_sizes(case: Case) -> None:
    check(compare(case))


@pytest.mark.parametrize("case", [Case(B=33, S=4, D=61, H=201, F=65), Case(P=1, B=17, S=3, D=257, H=129)], ids=str)
def test_wide(case: Case) -> None:
    """Weights above the size at which the kernel takes more sequences at once."""
    check(compare(case))


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_variants(case: Case) -> None:
    check(compare(case))


@pytest.mark.parametrize("seed", range(12))
def test_random_mixtures(seed: int) -> None:
    """Sizes and variants drawn together: what no list thought of."""
    g = torch.Generator().manual_seed(100 + seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    S = 1 + pick(20)
    case = Case(
        P=1 + pick(4),
        B=1 + pick(40),
        S=S,
        D=1 + pick(40),
        H=1 + pick(40),
        F=None if pick(4) == 0 else 1 + pick(40),
        A=1 + pick(9),
        dueling=pick(2) == 0,
        target=pick(4) != 0,
        double_q=pick(2) == 0,
        n_step=1 + pick(S + 3),
        burn_in=pick(S),
        rescale_eps=(0.0, 1e-3, 1e-2)[pick(3)],
        loss="mse" if pick(2) else "huber",
        eta=pick(11) / 10,
        member_gamma=pick(2) == 0,
        resets=pick(3) != 0,
        terminations=pick(3) != 0,
        padding=pick(3) != 0,
        legal=pick(2) == 0,
        weights=pick(2) == 0,
        seed=seed,
    )
    check(compare(case))


def test_metrics_see_one_wrong_element() -> None:
    """Control: one element of one gradient off by 1 percent of the largest is outside every tolerance."""
    got = evaluate(kernel_td_unroll, draw_decided(BASE))["grad.w_hh"]
    wrong = got.clone()
    wrong[1, 3, 2] += 0.01 * got.abs().max()
    seen = deviation(wrong, got)
    assert all(s > a for s, a in zip(seen, GRADIENTS, strict=True)), seen


def test_comparison_sees_another_discount() -> None:
    """Control: the check as a whole fails for a discount that is off by 0.001."""
    problem = draw_decided(replace(BASE, member_gamma=False))
    got = evaluate(kernel_td_unroll, problem.with_spec(gamma=0.969))
    want = evaluate(reference.td_unroll, problem.to(torch.float64))
    with pytest.raises(AssertionError, match="loss"):
        check({name: deviation(got[name], want[name]) for name in want})


def test_nothing_valid() -> None:
    """Loss, errors, priorities and gradients are exactly 0; the final state is still the unrolled one."""
    problem = draw(BASE)
    nowhere = torch.zeros_like(problem.batch.mask)
    empty = problem.with_batch(mask=nowhere, reward=torch.full_like(problem.batch.reward, float("nan")))
    got = evaluate(kernel_td_unroll, empty)
    want = evaluate(reference.td_unroll, problem.to(torch.float64))
    for name, value in got.items():
        if name in ("h_final", "c_final"):
            assert deviation(value, want[name]).scaled < VALUES.scaled
        else:
            assert not bool(value.any()), name


@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_saturated_gates(size: float) -> None:
    """Huge features drive gates and tanh to their ends, not to NaN; h stays in [-1, 1]."""
    problem = draw(replace(BASE, rescale_eps=0.0))
    x = problem.batch.features_online * size
    big = problem.with_batch(features_online=x, features_target=x)
    got = evaluate(kernel_td_unroll, big)
    assert all(bool(v.isfinite().all()) for v in got.values())
    want = evaluate(reference.td_unroll, big.to(torch.float64))
    assert float(got["h_final"].abs().max()) <= 1.0
    for name in ("h_final", "c_final", "q_taken"):
        assert deviation(got[name], want[name]).scaled < 6e-5, name  # observed 1.5e-5


def test_large_values_survive_rescaling() -> None:
    """Rewards of 1e4 under h: the target is exact to float32 rounding."""
    problem = draw_decided(replace(BASE, padding=False))
    large = problem.with_batch(reward=torch.nan_to_num(problem.batch.reward, posinf=0.0, neginf=0.0) * 1e4)
    got = evaluate(kernel_td_unroll, large)["td_error"]
    want = evaluate(reference.td_unroll, large.to(torch.float64))["td_error"]
    assert deviation(got, want).scaled < 3e-7  # observed 6.4e-8


class TestBfloat16:
    """compute_dtype = bfloat16: operands of the matrix products are rounded, sums stay in float32."""

    @pytest.mark.parametrize("case", ROUNDED, ids=str)
    def test_near_the_rounding_twin(self, case: Case) -> None:
        problem = draw_decided(case).with_spec(compute_dtype=torch.bfloat16)
        got = evaluate(kernel_td_unroll, problem)
        want = evaluate(reference.td_unroll, problem.to(torch.float64))
        check({name: deviation(got[name], want[name]) for name in want}, BFLOAT16_VALUES, BFLOAT16_GRADIENTS)

    def test_rounds_at_all(self) -> None:
        """Control: it is not the float32 path under another name."""
        problem = draw_decided(ROUNDED[0])
        plain = evaluate(kernel_td_unroll, problem)
        rounded = evaluate(kernel_td_unroll, problem.with_spec(compute_dtype=torch.bfloat16))
        for name in ("loss", "td_error", "grad.w_hh"):
            assert deviation(rounded[name], plain[name]).scaled > 1e-4, name


CHILD = """
import test_td_unroll_values as t
for case in t.VARIANTS[:9] + t.orthogonal_array()[3::6]:
    t.check(t.compare(case))
t.TestBfloat16().test_near_the_rounding_twin(t.ROUNDED[0])
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    runs_with(isa, CHILD)
