"""The compiled operators against their float64 twins: every value and gradient, odd sizes, every variant.

Sizes come from an orthogonal array, in which every pair of levels of every two sizes meets once. Three metrics are
taken of each tensor (largest error over largest value, 1 - cosine, relative L2); the tolerances stand beside the worst
that was observed over the three instruction sets. Cases avoid arg-max ties and ReLU kinks (`draw_decided`), where
float32 and float64 may rightly differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from op_cases import Case, Deviation, deviation, draw, draw_decided, evaluate
from torch import Tensor

from townlet import ops, reference
from townlet.params import TDOutput

ODD = (1, 3, 17, 33, 129)

# Each is (scaled, 1 - cosine, relative L2); the worst observed over avx512, avx2 and portable stands beside it.
VALUES = Deviation(5e-6, 2e-12, 4e-6)  #              observed 1.1e-6, 2.9e-13, 9.3e-7
GRADIENTS = Deviation(2e-5, 1e-11, 1e-5)  #           observed 4.9e-6, 2.7e-12, 2.3e-6
BFLOAT16_VALUES = Deviation(2e-3, 2e-8, 4e-4)  #      observed 4.0e-4, 3.9e-9, 8.9e-5
BFLOAT16_GRADIENTS = Deviation(2e-2, 2e-5, 1.2e-2)  # observed 4.8e-3, 4.4e-6, 3.0e-3


def kernel_td_unroll(online, target, batch, spec) -> TDOutput:
    """The compiled path or an error, never the fallback."""
    return ops.td_unroll(online, target, batch, replace(spec, backend="kernel"))


def compare(case: Case) -> dict[str, Deviation]:
    """Deviation of every output and gradient of one case, under a random incoming gradient."""
    problem = draw_decided(case)
    incoming = torch.rand(case.P, generator=torch.Generator().manual_seed(7)) + 0.5
    got = evaluate(kernel_td_unroll, problem, incoming)
    want = evaluate(reference.td_unroll, problem.to(torch.float64), incoming)
    assert got.keys() == want.keys()
    return {name: deviation(got[name], want[name]) for name in want}


def check(deviations: dict[str, Deviation], values: Deviation = VALUES, gradients: Deviation = GRADIENTS) -> None:
    for name, seen in deviations.items():
        allowed = gradients if name.startswith("grad.") else values
        assert all(s <= a for s, a in zip(seen, allowed, strict=True)), f"{name}: {seen}, allowed {allowed}"


def orthogonal_array() -> list[Case]:
    """L25: B, S, D, H and F over the five odd sizes, every pair of levels of every two of them; variants in turn."""
    cases = []
    for i in range(5):
        for j in range(5):
            B, S, D, H, F = (ODD[k % 5] for k in (i, j, i + j, i + 2 * j, i + 3 * j))
            n = 5 * i + j
            cases.append(
                Case(
                    P=(1, 2, 3)[n % 3],
                    B=B,
                    S=S,
                    D=D,
                    H=H,
                    F=None if n % 7 == 3 else F,
                    A=(6, 1, 3, 17, 33)[(i + 4 * j) % 5],
                    dueling=n % 3 != 1,
                    target=n % 6 != 5,
                    double_q=n % 4 != 2,
                    n_step=(1, 3, 5, 200)[n % 4],
                    burn_in=(S - 1, 0, S // 2)[n % 3],
                    rescale_eps=(0.0, 1e-3)[n % 2],
                    loss="mse" if n % 5 == 4 else "huber",
                    member_gamma=n % 2 == 0,
                    legal=n % 3 != 0,
                    weights=n % 4 != 3,
                    seed=n,
                )
            )
    return cases


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


BASE = Case(P=3, B=9, S=11, D=6, H=10, F=7, A=4)
VARIANTS = [
    BASE,
    replace(BASE, target=False),
    replace(BASE, target=False, double_q=False),
    replace(BASE, double_q=False),
    replace(BASE, double_q=False, legal=False),
    replace(BASE, dueling=False),
    replace(BASE, F=None),
    replace(BASE, F=None, dueling=False),
    replace(BASE, A=1),
    replace(BASE, n_step=1),
    replace(BASE, n_step=1, burn_in=0, rescale_eps=0.0),
    replace(BASE, n_step=11),
    replace(BASE, n_step=10**6),
    replace(BASE, burn_in=0),
    replace(BASE, burn_in=10),
    replace(BASE, rescale_eps=0.0),
    replace(BASE, rescale_eps=0.5),
    replace(BASE, loss="mse"),
    replace(BASE, huber_delta=0.05),
    replace(BASE, huber_delta=100.0),
    replace(BASE, eta=0.0),
    replace(BASE, eta=1.0),
    replace(BASE, member_gamma=False),
    replace(BASE, resets=False),
    replace(BASE, terminations=False),
    replace(BASE, padding=False),
    replace(BASE, resets=False, terminations=False, padding=False, legal=False, weights=False),
    replace(BASE, legal=False),
    replace(BASE, weights=False),
    replace(BASE, S=1, burn_in=0),
    replace(BASE, P=1, B=1),
]


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

    CASES = (
        replace(BASE, double_q=False, H=33, D=17, F=17),
        replace(BASE, double_q=False, H=17, F=None, dueling=False),
        replace(BASE, double_q=False, target=False, B=17, rescale_eps=0.0),
    )

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_near_the_rounding_twin(self, case: Case) -> None:
        problem = draw_decided(case).with_spec(compute_dtype=torch.bfloat16)
        got = evaluate(kernel_td_unroll, problem)
        want = evaluate(reference.td_unroll, problem.to(torch.float64))
        check({name: deviation(got[name], want[name]) for name in want}, BFLOAT16_VALUES, BFLOAT16_GRADIENTS)

    def test_rounds_at_all(self) -> None:
        """Control: it is not the float32 path under another name."""
        problem = draw_decided(self.CASES[0])
        plain = evaluate(kernel_td_unroll, problem)
        rounded = evaluate(kernel_td_unroll, problem.with_spec(compute_dtype=torch.bfloat16))
        for name in ("loss", "td_error", "grad.w_hh"):
            assert deviation(rounded[name], plain[name]).scaled > 1e-4, name


def unroll(lstm_unroll, inputs: list[Tensor], reset: Tensor | None, incoming: list[Tensor]) -> dict[str, Tensor]:
    """Results and gradients of one lstm_unroll under the given incoming gradients of y, h_T and c_T."""
    fresh = [v.detach().clone().requires_grad_() for v in inputs]
    out = lstm_unroll(*fresh, reset)
    torch.autograd.backward(out, [g.to(out[0]) for g in incoming])
    names = ("x", "h0", "c0", "w_ih", "w_hh", "bias")
    result = dict(zip(("y", "h_T", "c_T"), (v.detach() for v in out), strict=True))
    return result | {f"grad.{n}": v.grad for n, v in zip(names, fresh, strict=True) if v.grad is not None}


def unroll_case(P: int, B: int, T: int, D: int, H: int, seed: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Inputs, resets and incoming gradients, float32."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(P, B, T, D), (P, B, H), (P, B, H), (P, 4 * H, D), (P, 4 * H, H), (P, 4 * H)]
    inputs = [torch.randn(s, generator=g) for s in shapes]
    inputs[3] *= D**-0.5
    inputs[4] *= H**-0.5
    incoming = [torch.randn(s, generator=g) for s in ((P, B, T, H), (P, B, H), (P, B, H))]
    return inputs, torch.rand(P, B, T, generator=g) < 0.15, incoming


UNROLL_SIZES = [
    (1 + (i + j) % 3, ODD[i], ODD[j], ODD[(i + j) % 5], ODD[(i + 2 * j) % 5]) for i in range(5) for j in range(5)
]


class TestLstm:
    """lstm_unroll and lstm_step against the twin."""

    @pytest.mark.parametrize("size", UNROLL_SIZES, ids=str)
    def test_unroll_sizes(self, size: tuple[int, int, int, int, int]) -> None:
        inputs, reset, incoming = unroll_case(*size, seed=sum(size))
        for r in (reset, None) if size[1] <= 17 else (reset,):
            got = unroll(ops.lstm_unroll, inputs, r, incoming)
            want = unroll(reference.lstm_unroll, [v.double() for v in inputs], r, incoming)
            assert got.keys() == want.keys()
            assert len(got) == 9
            check({name: deviation(got[name], want[name]) for name in want})

    @pytest.mark.parametrize("used", [0, 1, 2])
    def test_unroll_gradient_of_one_result(self, used: int) -> None:
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
    def test_step(self, size: tuple[int, int, int, int, int]) -> None:
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
import sys, torch
from townlet import ops
assert ops.ISA == sys.argv[1], (ops.ISA, sys.argv[1])
torch.set_num_threads(1)
import test_op_values as t
for case in t.VARIANTS[:9] + t.orthogonal_array()[3::6]:
    t.check(t.compare(case))
t.TestBfloat16().test_near_the_rounding_twin(t.TestBfloat16.CASES[0])
for size in t.UNROLL_SIZES[1::5]:
    t.TestLstm().test_unroll_sizes(size)
    t.TestLstm().test_step(size)
"""


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(isa: str) -> None:
    """The builds that were not picked at load, each in its own process; one the CPU lacks is refused by name."""
    environment = {**os.environ, "TOWNLET_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", CHILD, isa], env=environment, capture_output=True, text=True)
    if isa in ops.ISA_LEVELS:
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert done.returncode != 0
        assert f"TOWNLET_ISA is '{isa}'" in done.stderr, done.stderr[-2000:]
