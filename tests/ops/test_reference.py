"""The twin's own foundations: numerical gradients in float64, value rescaling, n-step returns on plain arrays."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from op_cases import Case, close, draw, draw_decided, leaves, margin, valid
from torch import Tensor

from townlet import ops, reference
from townlet.ops import RecurrentQParams
from townlet.ops import reference as definitions

SMALL = Case(B=2, S=4, D=2, H=3, F=3, A=3, n_step=2, burn_in=0, padding=False)

# Finite differences see every path into the loss, the twin's gradient only those the contract lets through: none
# through burn-in, none through y. So numerical checks of the twin need burn_in = 0 and a target; the other variants are
# compared with an independent implementation in test_reference_independent.py.
GRADCHECK_CASES = [
    SMALL,
    Case(B=1, S=3, D=1, H=2, F=None, A=2, n_step=1, burn_in=0, dueling=False, rescale_eps=0.0, loss="mse"),
    Case(B=2, S=4, D=2, H=3, F=None, A=3, burn_in=0, double_q=False, n_step=9, legal=False),
    Case(B=3, S=4, D=3, H=2, F=2, A=2, burn_in=0, dueling=False, loss="mse", member_gamma=False, weights=False),
    Case(B=3, S=4, D=2, H=2, F=4, A=1, burn_in=0, huber_delta=0.1),
]


@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_td_unroll_gradcheck(case: Case) -> None:
    """Every online parameter and features_online, by central differences."""
    problem = leaves(draw_decided(case, least=1e-3).to(torch.float64))
    names = [n for n, v in problem.online._asdict().items() if v is not None]

    def loss(features: Tensor, *weights: Tensor) -> Tensor:
        online = problem.online._replace(**dict(zip(names, weights, strict=True)))
        batch = problem.batch._replace(features_online=features)
        return reference.td_unroll(online, problem.target, batch, problem.spec).loss

    inputs = (problem.batch.features_online, *(getattr(problem.online, n) for n in names))
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("with_reset", [True, False])
def test_lstm_unroll_gradcheck(with_reset: bool) -> None:
    """x, h0, c0 and the weights, through all three results."""
    g = torch.Generator().manual_seed(3)
    P, B, T, D, H = 2, 2, 4, 2, 3
    shapes = [(P, B, T, D), (P, B, H), (P, B, H), (P, 4 * H, D), (P, 4 * H, H), (P, 4 * H)]
    inputs = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    reset = torch.rand(P, B, T, generator=g) < 0.3 if with_reset else None
    assert reset is None or bool(reset.any())
    assert torch.autograd.gradcheck(lambda *v: reference.lstm_unroll(*v, reset), inputs, atol=1e-8, rtol=1e-6)


def test_gradcheck_would_see_a_leak() -> None:
    """Control: the same comparison fails where the contract cuts a path that differences do see (burn-in)."""
    case = Case(B=2, S=4, D=2, H=3, F=None, A=2, burn_in=2, resets=False, padding=False, terminations=False)
    problem = leaves(draw_decided(case, least=1e-3).to(torch.float64))

    def loss(w_hh: Tensor) -> Tensor:
        return reference.td_unroll(problem.online._replace(w_hh=w_hh), problem.target, problem.batch, problem.spec).loss

    assert not torch.autograd.gradcheck(loss, (problem.online.w_hh,), atol=1e-8, rtol=1e-6, raise_exception=False)


class TestRescaling:
    """h(x) = sign(x)(sqrt(|x| + 1) - 1) + eps x, by hand."""

    def test_golden(self) -> None:
        # eps = 0.001: h(3) = 2 - 1 + 0.003; h(-8) = -(3 - 1) - 0.008; h(99) = 10 - 1 + 0.099; h(0) = 0
        x = torch.tensor([3.0, -8.0, 99.0, 0.0], dtype=torch.float64)
        close(reference.rescale(x, 1e-3), [1.003, -2.008, 9.099, 0.0], 1e-15)
        # a large eps: h(3) = 1 + 0.5 * 3
        close(reference.rescale(x[:1], 0.5), [2.5], 1e-15)

    def test_inverse_golden(self) -> None:
        y = torch.tensor([1.003, -2.008, 9.099, 0.0], dtype=torch.float64)
        close(reference.rescale_inverse(y, 1e-3), [3.0, -8.0, 99.0, 0.0], 1e-12)

    def test_zero_is_the_identity(self) -> None:
        x = torch.tensor([-7.25, 0.0, 1e9])
        assert torch.equal(reference.rescale(x, 0.0), x)
        assert torch.equal(reference.rescale_inverse(x, 0.0), x)

    @pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.5])
    def test_roundtrip_float32(self, eps: float) -> None:
        """From 1e-6 to 1e9 the inverse loses nothing but float32 rounding (observed: 6.0e-7 of max(1, |x|))."""
        size = torch.logspace(-6, 9, 301, dtype=torch.float32)
        x = torch.cat([-size, torch.zeros(1), size])
        back = reference.rescale_inverse(reference.rescale(x, eps), eps)
        assert float(((back - x).abs() / x.abs().clamp(min=1.0)).max()) < 1e-6

    def test_textbook_inverse_cancels(self) -> None:
        """Control: the textbook form of the inverse, in float32, does not survive that check (observed 9.6e-5)."""
        x, eps = torch.linspace(0.1, 10, 100), 1e-3
        y = reference.rescale(x, eps)
        z = ((1 + 4 * eps * (y.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
        back = y.sign() * (z * z - 1)
        assert float(((back - x).abs() / x.abs().clamp(min=1.0)).max()) > 5e-6

    def test_monotone_and_odd(self) -> None:
        x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
        y = reference.rescale(x, 1e-3)
        assert bool((y.diff() > 0).all())
        assert torch.equal(reference.rescale(-x, 1e-3), -y)


class TestNStepReturn:
    """Returns on plain arrays, one sequence: gamma = 0.5 keeps every number exact."""

    @staticmethod
    def run(n: int, terminated: list[int] | None = None, invalid: list[int] | None = None) -> Tensor:
        value = torch.tensor([[[7.0, 16.0, 32.0, 64.0, 128.0]]], dtype=torch.float64)  # v_0..v_4, S = 4
        reward = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]], dtype=torch.float64)
        ends = torch.zeros(1, 1, 4, dtype=torch.bool)
        ok = torch.ones(1, 1, 4, dtype=torch.bool)
        ends[0, 0, terminated or []] = True
        ok[0, 0, invalid or []] = False
        gamma = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
        return reference.n_step_return(value, reward, ends, ok, gamma, n).flatten()

    def test_one_step(self) -> None:
        # 1 + 16/2, 2 + 32/2, 4 + 64/2, 8 + 128/2
        close(self.run(1), [9.0, 18.0, 36.0, 72.0], 0)

    def test_two_steps_with_shortened_tail(self) -> None:
        # 1 + 2/2 + 32/4, 2 + 4/2 + 64/4, 4 + 8/2 + 128/4, and the last takes only one: 8 + 128/2
        close(self.run(2), [10.0, 20.0, 40.0, 72.0], 0)

    def test_n_beyond_the_sequence(self) -> None:
        # 1 + 2/2 + 4/4 + 8/8 + 128/16, 2 + 4/2 + 8/4 + 128/8, 4 + 8/2 + 128/4, 8 + 128/2
        close(self.run(99), [12.0, 22.0, 40.0, 72.0], 0)

    def test_termination_stops_without_bootstrap(self) -> None:
        # transition 2 ends the episode: 1 + 2/2 + 4/4, 2 + 4/2, 4; transition 3 is the next episode's
        close(self.run(3, terminated=[2]), [3.0, 4.0, 4.0, 72.0], 0)

    def test_invalid_stops_with_bootstrap(self) -> None:
        # transition 2 is not valid: 1 + 2/2 + v_2/4, 2 + v_2/2, nothing, 8 + 128/2
        close(self.run(3, invalid=[2]), [10.0, 18.0, 0.0, 72.0], 0)

    def test_trap_4_golden_vector(self) -> None:
        # v = 10 everywhere, r = 0, gamma = 0.9, n = 5, six transitions: 10 * 0.9 ** min(5, 6 - t)
        value = torch.full((1, 1, 7), 10.0, dtype=torch.float64)
        none = torch.zeros(1, 1, 6, dtype=torch.bool)
        gamma = torch.full((1, 1, 1), 0.9, dtype=torch.float64)
        got = reference.n_step_return(value, none.double(), none, ~none, gamma, 5)
        close(got, [5.9049, 5.9049, 6.561, 7.29, 8.1, 9.0], 1e-12)


def test_every_operator_has_a_twin_of_its_name() -> None:
    twins = {n for n, f in vars(definitions).items() if getattr(f, "__module__", "") == definitions.__name__}
    twins = {n for n in twins if not n.startswith("_")}
    calls = {n for n in ops.__all__ if inspect.isfunction(getattr(ops, n))}
    assert calls - {"pack_actor", "td_unroll_scratch"} < twins  # one makes a handle, the other tells a size
    assert {"spatial_encode", "replay_write", "replay_windows"} < twins
    assert set(reference.__all__) == twins
    assert all(getattr(reference, n) is getattr(definitions, n) for n in twins)


class TestCases:
    """The generator itself: a case that draws nothing of what it promises would prove nothing."""

    def test_deterministic(self) -> None:
        a, b = draw(Case()), draw(Case())
        assert all(torch.equal(x, y) for x, y in zip(a.online[:3], b.online[:3], strict=True))
        assert not torch.equal(a.online.w_ih, draw(Case(seed=1)).online.w_ih)

    def test_everything_occurs(self) -> None:
        batch = draw(Case(B=33, S=17)).batch
        ok = valid(batch)
        assert batch.legal is not None
        inside = batch.reset[:, :, 1:-1]
        for event in (
            batch.terminated & ok,
            batch.terminated & ~batch.mask,
            inside,
            ~batch.mask,
            batch.mask & ~ok,  # the next episode starts without a termination
            batch.terminated & ok & ~batch.reset[:, :, 1:],
            ~batch.legal.any(-1),
            batch.legal.any(-1) & ~batch.legal.all(-1),
            ~ok.any(-1),
        ):
            assert bool(event.any())
            assert not bool(event.all())
        assert not bool(batch.reward[~ok].isfinite().any())
        assert bool(((batch.action[~ok] < 0) | (batch.action[~ok] >= 4)).all())
        assert bool(batch.reward[ok].isfinite().all())
        assert bool((batch.action[ok] < 4).all())

    def test_margin_sees_a_tie(self) -> None:
        problem = draw(Case(F=None, dueling=False, legal=False))
        assert 0 < margin(problem) < math.inf
        online: RecurrentQParams = problem.online
        for name in ("w_adv", "b_adv"):
            getattr(online, name)[:, 1:] = getattr(online, name)[:, :1]
        assert margin(problem) == 0
