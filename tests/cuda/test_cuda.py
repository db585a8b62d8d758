"""On a real GPU: the operators against their float64 twins on the CPU, and what only a GPU can show.

`pytest -m cuda` runs these alone. Without a GPU every one of them is skipped and says why; `tests/emu` and
`test_no_wait.py` show what can be shown then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from learners import make, state_of
from op_cases import Case, Problem, deviation, draw_decided, evaluate, kernel_td_unroll
from op_values import (
    BASE,
    BFLOAT16_GRADIENTS,
    BFLOAT16_VALUES,
    ODD,
    ROUNDED,
    UNROLL_SIZES,
    VARIANTS,
    check,
    orthogonal_array,
    unroll,
    unroll_case,
)
from resident_cases import FORMS
from torch import Tensor
from worlds import clock

from townlet import _native, ops, reference
from townlet.learning.learner import Learner
from townlet.support import devices
from townlet.training.trainer import Trainer

NO_GPU = devices.missing()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_GPU), reason=f"no GPU: {NO_GPU}")]
GPU = torch.device("cuda", 0)


def there(problem: Problem, device: torch.device = GPU) -> Problem:
    return problem.map(lambda v: v.to(device))


def compare(problem: Problem, device: torch.device = GPU) -> dict[str, Any]:
    """Deviation of every output and gradient on the GPU from the twin in float64 on the CPU."""
    incoming = torch.rand(problem.online.w_ih.shape[0], generator=torch.Generator().manual_seed(7)) + 0.5
    got = evaluate(kernel_td_unroll, there(problem, device), incoming)
    want = evaluate(reference.td_unroll, problem.to(torch.float64), incoming)
    assert got.keys() == want.keys()
    assert {v.device for v in got.values()} == {device}
    return {name: deviation(got[name].cpu(), want[name]) for name in want}


def test_the_kernels_are_loaded() -> None:
    assert _native.CUDA, _native.WHY_NOT_CUDA


# the sizes of every plan: one step a launch, one block, clusters, a cooperative grid (csrc/cuda/README.md)
RESIDENT = [
    Case(P=2, B=b, S=5, D=17, H=h, F=33, padding=b > 1) for b in (1, 17, 64) for h in (64, 96, 128, 256, 384, 512)
]


class TestOperators:
    @pytest.mark.parametrize("case", [*orthogonal_array(), *VARIANTS, *RESIDENT], ids=str)
    def test_td_unroll(self, case: Case) -> None:
        check(compare(draw_decided(case)))

    @pytest.mark.parametrize("case", [*ROUNDED, *(replace(c, double_q=False) for c in RESIDENT)], ids=str)
    def test_td_unroll_bfloat16(self, case: Case) -> None:
        seen = compare(draw_decided(case).with_spec(compute_dtype=torch.bfloat16))
        check(seen, BFLOAT16_VALUES, BFLOAT16_GRADIENTS)

    def test_the_comparison_sees_another_discount(self) -> None:
        """Control."""
        problem = draw_decided(replace(BASE, member_gamma=False))
        got = evaluate(kernel_td_unroll, there(problem.with_spec(gamma=0.969)))
        want = evaluate(reference.td_unroll, problem.to(torch.float64))
        with pytest.raises(AssertionError, match="loss"):
            check({name: deviation(got[name].cpu(), want[name]) for name in want})

    @pytest.mark.parametrize("size", [*UNROLL_SIZES, (2, 17, 9, 33, 128), (1, 33, 9, 64, 256)], ids=str)
    def test_lstm_unroll(self, size: tuple[int, int, int, int, int]) -> None:
        inputs, reset, incoming = unroll_case(*size, seed=sum(size))
        for r in (reset, None):
            there = [[v.to(GPU) for v in values] for values in (inputs, incoming)]
            got = unroll(ops.lstm_unroll, there[0], None if r is None else r.to(GPU), there[1])
            want = unroll(reference.lstm_unroll, [v.double() for v in inputs], r, incoming)
            check({name: deviation(got[name].cpu(), want[name]) for name in want})

    @pytest.mark.parametrize("size", UNROLL_SIZES[::3], ids=str)
    def test_lstm_step(self, size: tuple[int, int, int, int, int]) -> None:
        P, E, _, D, H = size
        inputs, reset, _ = unroll_case(P, E, 1, D, H, seed=9)
        x, h, c, *weights = inputs
        x, r = x[:, :, 0], reset[:, :, 0]
        want = reference.lstm_step(*(v.double() for v in (x, h, c, *weights)), r)
        problem = draw_decided(Case(P=P, D=D, H=H))
        w_ih, w_hh, bias = self.on(weights)
        packed = ops.pack(there(problem).online._replace(w_ih=w_ih, w_hh=w_hh, bias=bias))
        for got in (
            ops.lstm_step(*self.on([x, h, c, *weights, r])),
            ops.lstm_step(*self.on([x, h, c]), packed, reset=r.to(GPU)),
        ):
            check({str(i): deviation(got[i].cpu(), want[i]) for i in (0, 1)})

    @staticmethod
    def on(values: list[Tensor]) -> list[Tensor]:
        return [v.to(GPU) for v in values]

    def test_a_bad_action_makes_its_members_loss_nan_and_no_other(self) -> None:
        problem = there(draw_decided(replace(BASE, padding=False, resets=False)))
        action = problem.batch.action.clone()
        action[1, 0, BASE.burn_in + 1] = BASE.A
        loss = ops.td_unroll(*problem.with_batch(action=action)).loss
        assert loss.isnan().tolist() == [False, True, False]

    def test_the_callers_stream_is_used(self) -> None:
        """Work that the operator has to wait for, queued on the same side stream."""
        problem = there(draw_decided(BASE))
        want = ops.td_unroll(*problem).loss
        big = torch.rand(4096, 4096, device=GPU)
        late = torch.zeros_like(problem.batch.features_online)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                big = (big @ big).tanh()
            late.copy_(problem.batch.features_online + 0 * big[0, 0])
            got = ops.td_unroll(*problem.with_batch(features_online=late)).loss
        stream.synchronize()
        assert torch.allclose(got, want)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
    def test_another_gpu(self) -> None:
        check(compare(draw_decided(BASE), torch.device("cuda", 1)))

    @pytest.mark.parametrize("B", ODD)
    def test_the_same_call_gives_the_same_bits(self, B: int) -> None:
        problem = there(draw_decided(replace(BASE, B=B)))
        one, two = (evaluate(kernel_td_unroll, problem) for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestForms:
    """Every form of the recurrent kernels, whatever the plan would pick."""

    HIDDEN = (40, 130, 256, 512)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("form", FORMS)
    def test_forward_and_backward(self, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        if form.startswith("cluster") and torch.cuda.get_device_capability(GPU) < (9, 0):
            pytest.skip("no clusters before sm_90")
        bf16, ran = dtype == torch.bfloat16, []
        for H in self.HIDDEN:
            case = Case(P=1, B=19, S=5, D=17, H=H, F=33, padding=True, double_q=False)
            problem = draw_decided(case).with_spec(compute_dtype=dtype)
            if not self.fits(form, case, bf16, monkeypatch):
                continue
            ran.append(H)
            monkeypatch.setenv("TOWNLET_CUDA_UNROLL", form)
            check(compare(problem), *((BFLOAT16_VALUES, BFLOAT16_GRADIENTS) if bf16 else ()))
            got = ops.td_unroll(*there(problem))
            monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "step" if form != "step" else "grid:22")
            other = ops.td_unroll(*there(problem))
            assert not torch.equal(got.h_final, other.h_final), "control: another order of summation ran"
        assert ran, f"{form} fits none of {self.HIDDEN}"

    @staticmethod
    def fits(form: str, case: Case, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether it fits both directions; then the plan says that it runs."""
        monkeypatch.setenv("TOWNLET_CUDA_UNROLL", form)
        for chains, backward in ((2, False), (1, True)):
            try:
                plan = torch.ops.townlet.unroll_plan(0, case.P, case.B, case.S + 1, case.H, bf16, chains, backward)
            except RuntimeError as error:
                if f"TOWNLET_CUDA_UNROLL is '{form}'; expected a form " in str(error):
                    return False
                raise
            assert plan == FORMS[form]
        return True

    def test_a_form_that_does_not_fit_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = there(draw_decided(replace(BASE, H=130)))
        ops.td_unroll(*problem)
        monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "single")
        with pytest.raises(RuntimeError, match="TOWNLET_CUDA_UNROLL is 'single'; expected a form with at most 128"):
            ops.td_unroll(*problem)


class TestUpdate:
    @staticmethod
    def like(learner: Learner, **arguments: Any) -> Learner:
        """A learner on the GPU in the state of `learner`."""
        other = make([1, 2], device="cuda", **arguments)
        for part in ("population", "replay"):
            getattr(other, part).load_state_dict(getattr(learner, part).state_dict())
        return other

    @pytest.mark.parametrize("arguments", [{}, {"tau": 0.3, "sync_every": 1}, {"use_target": False}], ids=str)
    def test_it_is_the_cpus(self, arguments: dict[str, Any]) -> None:
        here = make([1, 2], **arguments)
        gpu = self.like(here, **arguments)
        for _ in range(5):
            metrics = [learner.update() for learner in (here, gpu)]
            for name, value in metrics[0].items():
                assert torch.allclose(value, metrics[1][name].cpu(), atol=1e-3), name
        gpu.population.check()
        for a, b in zip(state_of(here), state_of(gpu), strict=True):
            assert torch.allclose(a, b.cpu(), atol=1e-3)

    @pytest.mark.parametrize("arguments", [{}, {"tau": 0.3, "sync_every": 1}, {"memory": False}], ids=str)
    def test_a_recorded_update_is_the_update(self, arguments: dict[str, Any]) -> None:
        plain = make([1, 2], device="cuda", **arguments)
        recorded = self.like(plain, graph=True, **arguments)
        for n in range(15):
            for learner in (plain, recorded):
                learner.population.lr.fill_(1e-2 * 0.9**n)
                learner.update()
        assert recorded.replayed is not None
        assert recorded.replayed.refused is None
        assert recorded.replayed._recorded
        for a, b in zip(state_of(plain), state_of(recorded), strict=True):
            assert torch.allclose(a, b, atol=1e-5)

    def test_it_waits_for_nothing(self) -> None:
        learner = make([1, 2], device="cuda")
        for _ in range(4):  # libraries set themselves up
            learner.update()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                learner.update()
            with pytest.raises(RuntimeError, match="synchroniz"):  # control
                learner.population.check()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_run_moves_between_devices(self, tmp_path: Any) -> None:
        run = Trainer(clock(run_dir=str(tmp_path / "run"), device="cuda", total_steps=80))
        run.train()
        back = Trainer.resume(tmp_path / "run", {"device": "cpu", "total_steps": 120})
        for a, b in zip(state_of(run.learner), state_of(back.learner), strict=True):
            assert torch.equal(a.cpu(), b)
        back.train()
        again = Trainer.resume(tmp_path / "run", {"device": "cuda", "total_steps": 160})
        again.train()
        assert again.evaluate().returns.shape == (2, 3)
        assert again.updates > back.updates > run.updates
