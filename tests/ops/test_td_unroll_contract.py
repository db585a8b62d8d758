"""What `td_unroll` promises besides its numbers: what is differentiable, determinism, backends, layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from op_cases import (
    Case,
    Problem,
    TDUnroll,
    assert_same_bits,
    deviation,
    draw,
    draw_decided,
    evaluate,
    kernel_td_unroll,
    leaves,
    strided,
)
from torch import Tensor

from townlet import ops, reference
from townlet.ops import RecurrentQParams

CASE = Case(P=3, B=5, S=6)
# several shards, several blocks of gradient rows, and sizes that fill no vector
LARGE = Case(P=3, B=41, S=13, D=19, H=37, F=21, A=5)


BOTH = pytest.mark.parametrize("td_unroll", [kernel_td_unroll, reference.td_unroll], ids=["kernel", "twin"])


class TestGradients:
    """Who gets one."""

    @BOTH
    def test_only_the_loss_is_differentiable(self, td_unroll: TDUnroll) -> None:
        out = td_unroll(*leaves(draw(CASE)))
        assert out.loss.requires_grad
        for name, value in out._asdict().items():
            if name != "loss":
                assert not value.requires_grad, name

    @BOTH
    def test_nothing_else_gets_one(self, td_unroll: TDUnroll) -> None:
        """h0, c0, weight, reward, features_target, the target's weights and gamma are constants."""
        p = leaves(draw(CASE))
        assert p.target is not None
        assert p.batch.features_target is not None
        p = p.with_batch(reward=p.batch.reward.nan_to_num(0.0, 0.0, 0.0))
        assert isinstance(p.spec.gamma, Tensor)
        constants = [p.batch.h0, p.batch.c0, p.batch.weight, p.batch.reward, p.batch.features_target, p.spec.gamma]
        constants += [v for v in p.target if v is not None]
        for v in constants:
            v.requires_grad_()
        td_unroll(*p).loss.sum().backward()
        assert p.online.w_ih.grad is not None
        assert all(v.grad is None for v in constants)

    @BOTH
    def test_features_without_grad_get_none(self, td_unroll: TDUnroll) -> None:
        p = leaves(draw(CASE), features=False)
        td_unroll(*p).loss.sum().backward()
        assert p.batch.features_online.grad is None
        want = evaluate(td_unroll, draw(CASE))
        assert p.online.w_hh.grad is not None
        assert torch.equal(p.online.w_hh.grad, want["grad.w_hh"])

    def test_nothing_is_computed_that_nobody_asked_for(self) -> None:
        """The compiled op returns empty gradients for features or weights that need none."""
        recorded: list[tuple[bool, bool]] = []

        class Spy(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if func is torch.ops.townlet.td_unroll.default:
                    recorded.append((out[6].numel() > 0, any(v.numel() > 0 for v in out[7:])))
                return out

        p = leaves(draw(CASE))
        frozen = p._replace(online=RecurrentQParams(*(None if v is None else v.detach() for v in p.online)))
        with Spy():
            kernel_td_unroll(*p)
            kernel_td_unroll(*leaves(draw(CASE), features=False))
            kernel_td_unroll(*frozen)
            with torch.no_grad():
                kernel_td_unroll(*p)
        assert recorded == [(True, True), (False, True), (True, False), (False, False)]

    @BOTH
    def test_some_weights_frozen(self, td_unroll: TDUnroll) -> None:
        p = leaves(draw(CASE), features=False)
        p.online.w_ih.requires_grad_(False)
        p.online.b_adv.requires_grad_(False)
        td_unroll(*p).loss.sum().backward()
        assert p.online.w_ih.grad is None
        assert p.online.b_adv.grad is None
        assert p.online.w_hh.grad is not None
        assert torch.equal(p.online.w_hh.grad, evaluate(td_unroll, draw(CASE))["grad.w_hh"])

    @BOTH
    def test_features_alone(self, td_unroll: TDUnroll) -> None:
        """A frozen recurrent network still trains the encoder below it."""
        p = leaves(draw(CASE))
        p = p._replace(online=RecurrentQParams(*(None if v is None else v.detach() for v in p.online)))
        td_unroll(*p).loss.sum().backward()
        assert p.batch.features_online.grad is not None
        want = evaluate(td_unroll, draw(CASE))["grad.features_online"]
        assert torch.equal(p.batch.features_online.grad, want)

    @BOTH
    def test_no_grad(self, td_unroll: TDUnroll) -> None:
        p = leaves(draw(CASE))
        with torch.no_grad():
            quiet = td_unroll(*p)
        assert not quiet.loss.requires_grad
        for a, b in zip(quiet, td_unroll(*p), strict=True):
            assert torch.equal(a, b)

    @BOTH
    def test_scales_with_the_incoming_gradient(self, td_unroll: TDUnroll) -> None:
        """Member by member; a zero incoming gradient gives exactly 0."""
        problem = draw(CASE)
        one = evaluate(td_unroll, problem)
        scaled = evaluate(td_unroll, problem, torch.tensor([2.0, -0.5, 0.0]))
        for name in one:
            if name.startswith("grad."):
                for member, factor in enumerate((2.0, -0.5, 0.0)):
                    assert deviation(scaled[name][member], factor * one[name][member]).scaled < 1e-6, name

    @BOTH
    def test_accumulates_like_any_op(self, td_unroll: TDUnroll) -> None:
        """Two losses on the same leaves add up, and a graph above the features goes on."""
        p = leaves(draw(CASE))
        encoder = torch.ones((), requires_grad=True)
        twice = p.with_batch(features_online=p.batch.features_online.detach() * encoder)
        (td_unroll(*twice).loss.sum() + 2 * td_unroll(*twice).loss.sum()).backward()
        want = evaluate(td_unroll, draw(CASE))
        assert p.online.w_hh.grad is not None
        assert deviation(p.online.w_hh.grad, 3 * want["grad.w_hh"]).scaled < 1e-6
        assert encoder.grad is not None
        through = 3 * (want["grad.features_online"] * p.batch.features_online.detach()).sum()
        assert float((encoder.grad - through).abs() / through.abs()) < 1e-5

    def test_double_backward_raises(self) -> None:
        """Also where the incoming gradient is a constant, so that a gradient penalty cannot be lost in silence."""

        def twice(loss: Tensor, p: Problem) -> None:
            (grad,) = torch.autograd.grad(loss, p.online.w_hh, create_graph=True)
            (loss + grad.square().sum()).backward()

        for above in (torch.sum, lambda v: v.square().sum()):
            p = leaves(draw(CASE))
            loss = above(kernel_td_unroll(*p).loss)
            with pytest.raises(RuntimeError, match="double backward"):
                twice(loss, p)


class TestDeterminism:
    """The same bits for any number of threads and for a member in any company."""

    VARIANTS = (LARGE, replace(LARGE, F=None, dueling=False, burn_in=0), replace(LARGE, P=1, B=3, target=False))

    @pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("case", VARIANTS, ids=str)
    def test_threads(self, case: Case, bf16: bool) -> None:
        problem = draw(case).with_spec(compute_dtype=torch.bfloat16 if bf16 else torch.float32)
        before = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(evaluate(kernel_td_unroll, problem))
        finally:
            torch.set_num_threads(before)
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])

    def test_repeats(self) -> None:
        problem = draw(LARGE)
        assert_same_bits(evaluate(kernel_td_unroll, problem), evaluate(kernel_td_unroll, problem))

    @pytest.mark.parametrize("case", VARIANTS[:2], ids=str)
    def test_member_alone(self, case: Case) -> None:
        problem = draw(case)
        together = evaluate(kernel_td_unroll, problem)
        for p in range(case.P):
            alone = evaluate(kernel_td_unroll, problem.members(slice(p, p + 1)))
            assert_same_bits(alone, {name: v[p : p + 1] for name, v in together.items()})

    def test_members_do_not_meet(self) -> None:
        """Control of the above: a change in member 1 changes member 1, and nothing of the others."""
        problem = draw(LARGE)
        w_hh = problem.online.w_hh.clone()
        w_hh[1] *= 1.5
        got = evaluate(kernel_td_unroll, problem._replace(online=problem.online._replace(w_hh=w_hh)))
        want = evaluate(kernel_td_unroll, problem)
        for name in want:
            assert torch.equal(got[name][0], want[name][0]), name
            assert torch.equal(got[name][2], want[name][2]), name
        assert not torch.equal(got["grad.w_hh"][1], want["grad.w_hh"][1])


class TestLayouts:
    """Strides are the caller's business: results do not depend on them."""

    def test_non_contiguous(self) -> None:
        problem = draw(CASE)
        odd = problem.map(strided)
        assert not odd.online.w_hh.is_contiguous()
        assert not odd.batch.action.is_contiguous()
        want = evaluate(kernel_td_unroll, problem)
        got = {k: v.contiguous() for k, v in evaluate_in_place(odd).items()}
        assert_same_bits(got, want)

    def test_expanded(self) -> None:
        """Stride 0: one set of weights, one mask row, one legal row for all."""
        problem = draw(replace(CASE, padding=False, resets=False, terminations=False))
        share = {
            "weight": problem.batch.weight[:1, :1].expand(3, 5),
            "legal": torch.tensor([True, False, True, True]).expand(3, 5, 7, 4),
            "mask": torch.ones(1, 1, 1, dtype=torch.bool).expand(3, 5, 6),
        }
        online = RecurrentQParams(*(None if v is None else v[:1].expand(3, *v.shape[1:]) for v in problem.online))
        odd = problem.with_batch(**share)._replace(online=online)
        out, same = kernel_td_unroll(*odd), kernel_td_unroll(*odd.map(lambda v: v.contiguous()))
        for a, b in zip(out, same, strict=True):
            assert torch.equal(a, b)


def evaluate_in_place(problem: Problem) -> dict[str, Tensor]:
    """`op_cases.evaluate` without copying the arguments, so that they keep their strides."""
    weights = {n: v.requires_grad_() for n, v in problem.online._asdict().items() if v is not None}
    weights["features_online"] = problem.batch.features_online.requires_grad_()
    out = kernel_td_unroll(*problem)
    out.loss.sum().backward()
    grads = {f"grad.{n}": v.grad for n, v in weights.items() if v.grad is not None}
    return {n: v.detach() for n, v in out._asdict().items()} | grads


ANNOUNCED = """
import warnings
from dataclasses import replace
import torch
from op_cases import Case, draw, evaluate, deviation
from townlet import ops, reference

def heard(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in seen if "townlet" in str(w.message)]

single = draw(Case())
double = single.to(torch.float64)
assert heard(lambda: ops.td_unroll(*single)) == []
asked = double.with_spec(backend="reference")
assert heard(lambda: ops.td_unroll(*asked)) == []
first = heard(lambda: ops.td_unroll(*double))
assert len(first) == 1 and "float64" in first[0] and "reference" in first[0], first
assert heard(lambda: ops.td_unroll(*double)) == []
got, want = evaluate(ops.td_unroll, double), evaluate(reference.td_unroll, double)
assert all(torch.equal(got[n], want[n]) for n in want)
"""


class TestBackend:
    """The fallback is asked for or announced, never silent."""

    def test_announced_once(self) -> None:
        """In a process of its own: once per process is what is tested."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", ANNOUNCED], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    def test_float64_has_no_kernel(self) -> None:
        with pytest.raises(ValueError, match=r"backend is 'kernel'.*float64.*expected float32"):
            kernel_td_unroll(*draw(CASE).to(torch.float64))

    def test_reference_on_request(self) -> None:
        """Bit for bit the twin, in float32 too."""
        problem = draw_decided(CASE)
        got = evaluate(ops.td_unroll, problem.with_spec(backend="reference"))
        assert_same_bits(got, evaluate(reference.td_unroll, problem))

    def test_auto_is_the_kernel_in_float32(self) -> None:
        problem = draw(CASE)
        assert_same_bits(evaluate(ops.td_unroll, problem), evaluate(kernel_td_unroll, problem))
