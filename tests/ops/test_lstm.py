"""lstm_unroll, lstm_step and ResetLSTM beside `torch.nn.LSTM`, and beside each other."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from op_cases import Case, assert_same_bits, deviation, draw, leaves, strided
from torch import Tensor, nn

from townlet import ops, reference
from townlet.nn import ResetLSTM

SIZES = [(1, 1, 1, 1), (3, 7, 5, 4), (17, 33, 17, 33), (5, 12, 40, 65)]  # B, T, D, H
TOL = 4e-6  # relative to the largest value; observed 9.0e-7


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def torch_lstm(D: int, H: int) -> nn.LSTM:
    return nn.LSTM(D, H, batch_first=True)


def state(B: int, H: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, B, H).tanh(), torch.randn(1, B, H)


def close(got: Tensor, want: Tensor, tol: float = TOL) -> None:
    assert deviation(got, want).scaled < tol


class TestResetLSTM:
    """The module."""

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_equals_torch_without_resets(self, size: tuple[int, int, int, int]) -> None:
        """Values and all gradients, bias_ih and bias_hh both getting that of their sum."""
        B, T, D, H = size
        theirs = torch_lstm(D, H)
        ours = ResetLSTM.from_torch(theirs)
        h0, c0 = state(B, H)
        x = torch.randn(B, T, D)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        y, (h, c) = ours(xs[0], (h0[0], c0[0]))
        want, (hn, cn) = theirs(xs[1], (h0, c0))
        for a, b in ((y, want), (h, hn[0]), (c, cn[0])):
            assert a.shape == b.shape
            close(a, b)
        for out, last in ((y, h), (want, hn)):
            (out.square().sum() + last.sum()).backward()
        assert xs[0].grad is not None
        assert xs[1].grad is not None
        close(xs[0].grad, xs[1].grad)
        for a, b in ((ours.w_ih, "weight_ih_l0"), (ours.w_hh, "weight_hh_l0"), (ours.bias, "bias_hh_l0")):
            assert a.grad is not None
            close(a.grad[0], getattr(theirs, b).grad)

    def test_resets_equal_the_twin(self) -> None:
        module = ResetLSTM(5, 9, members=3)
        x, reset = torch.randn(3, 4, 8, 5), torch.rand(3, 4, 8) < 0.3
        start = torch.randn(3, 4, 9), torch.randn(3, 4, 9)
        y, (h, c) = module(x, start, reset)
        weights = (v.detach().double() for v in (module.w_ih, module.w_hh, module.bias))
        want = reference.lstm_unroll(x.double(), *(v.double() for v in start), *weights, reset)
        for a, b in zip((y, h, c), want, strict=True):
            close(a, b)

    def test_a_reset_starts_the_sequence_anew(self) -> None:
        """After a reset nothing of the past is left, in value or gradient: torch's own LSTM on the rest, from zero."""
        theirs = torch_lstm(4, 6)
        ours = ResetLSTM.from_torch(theirs)
        x = torch.randn(2, 9, 4, requires_grad=True)
        reset = torch.zeros(2, 9, dtype=torch.bool)
        reset[:, 5] = True
        y, _ = ours(x, None, reset)
        for part in (slice(0, 5), slice(5, 9)):
            close(y[:, part], theirs(x[:, part])[0])
        (grad,) = torch.autograd.grad(y[:, 5:].sum(), x)
        assert not bool(grad[:, :5].any())
        assert bool(grad[:, 5:].any())
        # control: without the reset the past is there
        (grad,) = torch.autograd.grad(ours(x)[0][:, 5:].sum(), x)
        assert bool(grad[:, :5].any())

    def test_state_is_zero_when_left_out(self) -> None:
        module = ResetLSTM(3, 4, members=2)
        x, zero = torch.randn(2, 3, 5, 3), torch.zeros(2, 3, 4)
        assert torch.equal(module(x)[0], module(x, (zero, zero))[0])

    def test_one_member_without_its_axis(self) -> None:
        module = ResetLSTM(3, 4)
        x, reset = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.3
        start = torch.randn(5, 4), torch.randn(5, 4)
        y, (h, c) = module(x, start, reset)
        lead = module(x[None], (start[0][None], start[1][None]), reset[None])
        assert y.shape == (5, 6, 4)
        assert torch.equal(y, lead[0][0])
        assert torch.equal(h, lead[1][0][0])
        assert torch.equal(c, lead[1][1][0])

    def test_without_bias(self) -> None:
        theirs = nn.LSTM(3, 4, batch_first=True, bias=False)
        x = torch.randn(2, 5, 3)
        close(ResetLSTM.from_torch(theirs)(x)[0], theirs(x)[0])

    def test_is_a_module(self) -> None:
        """Parameters, state_dict, double(): float64 goes through the reference."""
        module = ResetLSTM(3, 4, members=2)
        assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
            "w_ih": (2, 16, 3),
            "w_hh": (2, 16, 4),
            "bias": (2, 16),
        }
        assert float(module.w_hh.detach().abs().max()) <= 0.5  # 1 / sqrt(H)
        other = ResetLSTM(3, 4, members=2)
        other.load_state_dict(module.state_dict())
        x = torch.randn(2, 3, 5, 3)
        assert torch.equal(other(x)[0], module(x)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the announcement, whose test is in test_td_unroll_contract.py
            close(other.double()(x.double())[0], module(x)[0])
        assert "3, 4, members=2" in repr(module)

    @pytest.mark.parametrize(
        ("kwargs", "name"),
        [
            ({"input_size": 0, "hidden_size": 4}, "input_size"),
            ({"input_size": 3, "hidden_size": -1}, "hidden_size"),
            ({"input_size": 3, "hidden_size": 4, "members": 0}, "members"),
            ({"input_size": 3, "hidden_size": 2.5}, "hidden_size"),
            ({"input_size": 3, "hidden_size": 4, "num_layers": 2}, "num_layers"),
        ],
    )
    def test_sizes_refused(self, kwargs: dict[str, Any], name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} is .*expected"):
            ResetLSTM(**kwargs)

    @pytest.mark.parametrize("kwargs", [{"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}])
    def test_other_kinds_of_lstm_refused(self, kwargs: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            ResetLSTM.from_torch(nn.LSTM(3, 4, **kwargs))


class TestStepsAndUnroll:
    """One step at a time, or all at once."""

    @pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
    @pytest.mark.parametrize("with_reset", [False, True])
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_chained_steps_equal_the_unroll(self, size: tuple[int, ...], with_reset: bool, packed: bool) -> None:
        B, T, D, H = size
        p = draw(Case(P=2, B=B, S=max(T - 1, 1), D=D, H=H, burn_in=0))
        x, reset = p.batch.features_online, p.batch.reset if with_reset else None
        weights = p.online[:3]
        y, h_T, c_T = ops.lstm_unroll(x, p.batch.h0, p.batch.c0, *weights, reset)
        h, c = p.batch.h0, p.batch.c0
        for t in range(x.shape[2]):
            first = None if reset is None else reset[:, :, t]
            step = (ops.pack(p.online),) if packed else weights
            h, c = ops.lstm_step(x[:, :, t], h, c, *step, reset=first)
            close(h, y[:, :, t])
        close(h, h_T)
        close(c, c_T)

    def test_last_output_is_the_final_state(self) -> None:
        p = draw(Case())
        y, h, _ = ops.lstm_unroll(p.batch.features_online, p.batch.h0, p.batch.c0, *p.online[:3], p.batch.reset)
        assert torch.equal(y[:, :, -1], h)

    def test_final_state_of_td_unroll(self) -> None:
        """The operator's h_final and c_final are lstm_unroll's, burn-in or not."""
        p = draw(Case(S=9, burn_in=4))
        out = ops.td_unroll(*p)
        _, h, c = ops.lstm_unroll(p.batch.features_online, p.batch.h0, p.batch.c0, *p.online[:3], p.batch.reset)
        close(out.h_final, h)
        close(out.c_final, c)

    def test_split_in_two(self) -> None:
        """An unroll from the state that another unroll ended in: the same as one, gradients included."""
        p = draw(Case(S=9))
        x, h0, c0, reset = p.batch.features_online, p.batch.h0, p.batch.c0, p.batch.reset
        weights = [v.clone().requires_grad_() for v in p.online[:3]]
        whole, _, _ = ops.lstm_unroll(x, h0, c0, *weights, reset)
        a, h, c = ops.lstm_unroll(x[:, :, :4], h0, c0, *weights, reset[:, :, :4])
        b, _, _ = ops.lstm_unroll(x[:, :, 4:], h, c, *weights, reset[:, :, 4:])
        parts = torch.cat([a, b], 2)
        close(parts, whole)
        for got, want in zip(
            torch.autograd.grad(parts.square().sum(), weights),
            torch.autograd.grad(whole.square().sum(), weights),
            strict=True,
        ):
            close(got, want)

    def test_step_gradient(self) -> None:
        """lstm_step with plain weights is differentiable like the unroll of one step."""
        p = draw(Case())
        grads = []
        for f, dtype in ((ops.lstm_step, torch.float32), (reference.lstm_step, torch.float64)):
            args = (p.batch.features_online[:, :, 0], p.batch.h0, p.batch.c0, *p.online[:3])
            fresh = [v.detach().to(dtype).clone().requires_grad_() for v in args]
            h, c = f(*fresh, p.batch.reset[:, :, 0])
            grads.append(torch.autograd.grad(h.square().sum() + c.sum(), fresh))
        for got, want in zip(*grads, strict=True):
            close(got, want)

    def test_step_leaves_its_state_alone(self) -> None:
        """The new state is a new tensor; acting decides what to keep."""
        p = draw(Case())
        h, c = p.batch.h0.clone(), p.batch.c0.clone()
        ones = torch.ones(h.shape[:2], dtype=torch.bool)
        for weights in (p.online[:3], (ops.pack(p.online),)):
            ops.lstm_step(p.batch.features_online[:, :, 0], h, c, *weights, reset=ones)
            assert torch.equal(h, p.batch.h0)
            assert torch.equal(c, p.batch.c0)

    def test_rows_are_independent(self) -> None:
        """A row's step does not depend on how many rows there are: acting alone or in a crowd gives the same bits."""
        p = draw(Case(P=2, B=23, D=9, H=21))
        x, handle = p.batch.features_online[:, :, 0], ops.pack(p.online)
        h, c = ops.lstm_step(x, p.batch.h0, p.batch.c0, handle)
        for e in (0, 7, 22):
            one = slice(e, e + 1)
            ha, ca = ops.lstm_step(x[:, one], p.batch.h0[:, one], p.batch.c0[:, one], handle)
            assert torch.equal(ha, h[:, one])
            assert torch.equal(ca, c[:, one])


LARGE = Case(P=3, B=41, S=13, D=19, H=37, F=21, A=5)  # several shards, and sizes that fill no vector


def test_threads_and_members_leave_the_bits_alone() -> None:
    p = draw(LARGE)
    args = (p.batch.features_online, p.batch.h0, p.batch.c0, *p.online[:3], p.batch.reset)

    def run(args: tuple[Tensor, ...]) -> dict[str, Tensor]:
        fresh = [v.detach().clone().requires_grad_() for v in args[:-1]]
        out = ops.lstm_unroll(*fresh, args[-1])
        sum(v.square().sum() for v in out).backward()
        return {str(i): v.detach() for i, v in enumerate((*out, *(f.grad for f in fresh)))}

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = run(args)
        torch.set_num_threads(2)
        assert_same_bits(run(args), want)
    finally:
        torch.set_num_threads(before)
    alone = run(tuple(v[1:2].clone() for v in args))
    assert_same_bits(alone, {name: v[1:2] for name, v in want.items()})


def test_non_contiguous() -> None:
    p = draw(Case(P=3, B=5, S=6))
    args = (p.batch.features_online, p.batch.h0, p.batch.c0, *p.online[:3], p.batch.reset)
    for a, b in zip(ops.lstm_unroll(*args), ops.lstm_unroll(*map(strided, args)), strict=True):
        assert torch.equal(a, b)
    first = (args[0][:, :, 0], *args[1:6], args[6][:, :, 0])
    for a, b in zip(ops.lstm_step(*first), ops.lstm_step(*map(strided, first)), strict=True):
        assert torch.equal(a, b)
    # incoming gradients with stride 0: sum() makes them
    x = args[0].clone().requires_grad_()
    y, _, _ = ops.lstm_unroll(x, *args[1:])
    (expanded,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (dense,) = torch.autograd.grad((y * torch.ones_like(y)).sum(), x)
    assert torch.equal(expanded, dense)


def test_double_backward_raises() -> None:
    """Also where the incoming gradient is a constant, so that a gradient penalty cannot be lost in silence."""

    def twice(loss: Tensor, w_hh: Tensor) -> None:
        (grad,) = torch.autograd.grad(loss, w_hh, create_graph=True)
        (loss + grad.square().sum()).backward()

    for above in (torch.sum, lambda v: v.square().sum()):
        p = leaves(draw(Case(P=3, B=5, S=6)))
        w, b = p.online, p.batch
        y, _, _ = ops.lstm_unroll(b.features_online, b.h0, b.c0, w.w_ih, w.w_hh, w.bias, b.reset)
        loss = above(y)
        with pytest.raises(RuntimeError, match="double backward"):
            twice(loss, w.w_hh)
