"""DESIGN's traps, as far as the operator is concerned: each a check that the operator and its twin pass and that a twin
broken in just that way (op_mutants.py) fails.

Acting, replay and checkpoints have their traps (5 and 7 in part, 9, 11, 12) tested by their own files.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any, ClassVar

import op_mutants as mutants
import pytest
import torch
from op_cases import Case, Problem, TDUnroll, close, counter, deviation, draw, evaluate, leaves, table, valid
from torch import Tensor

from townlet import ops, reference
from townlet.ops import SequenceBatch, TDOutput, TDSpec

Controls = dict[str, list[TDUnroll]]
F64 = torch.float64
SPEC = TDSpec(gamma=0.5, double_q=False, loss="mse")
TOL = 4e-6  # absolute, on hand-made values up to 10; observed 1.1e-6 (kernel)


def kernel(online: Any, target: Any, batch: Any, spec: TDSpec) -> TDOutput:
    """The compiled operator on the checks' float64 numbers in float32; gradients come back through the cast."""

    def down(v: Any) -> Any:
        return v.float() if isinstance(v, Tensor) and v.is_floating_point() else v

    online, batch = type(online)(*map(down, online)), type(batch)(*map(down, batch))
    target = None if target is None else type(target)(*map(down, target))
    return ops.td_unroll(online, target, batch, replace(spec, backend="kernel"))


class Trap:
    """One trap: every `check_*` of a subclass must hold for the twin and the kernel; `controls` names, for each, the
    broken twins that must fail it."""

    controls: ClassVar[Controls] = {}


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).view(1, 1, -1)


def tanh(*sums: float) -> list[float]:
    return [math.tanh(s) for s in sums]


def td(td_unroll: TDUnroll, problem: Problem) -> TDOutput:
    return td_unroll(*problem)


class Trap1StateDropped(Trap):
    """Every step trained from a zero state; or carried forward, but cut off from the gradient."""

    @staticmethod
    def check_values(td_unroll: TDUnroll) -> None:
        # running sum from c0 = 0.5: 0.6, 0.8
        c0 = torch.full((1, 1, 1), 0.5, dtype=F64)
        out = td(td_unroll, counter([[[0.1], [0.2], [0.3]]], None, SPEC, action=[0, 0], reward=[0, 0], c0=c0))
        close(out.q_taken, tanh(0.6, 0.8), TOL)

    @staticmethod
    def check_gradient(td_unroll: TDUnroll) -> None:
        """w_hh is trained, and an error at step 3 alone reaches the observations before it."""
        problem = draw(Case(S=4, burn_in=0, resets=False, terminations=False, padding=False)).to(F64)
        only_last = torch.zeros_like(problem.batch.mask)
        only_last[:, :, 3] = True
        grads = evaluate(td_unroll, problem.with_batch(mask=only_last))
        assert float(grads["grad.w_hh"].abs().max()) > 1e-3
        for t in range(4):
            assert bool((grads["grad.features_online"][:, :, t].abs().amax(-1) > 0).all()), t

    @staticmethod
    def check_aliased_observations_differ_by_their_past(td_unroll: TDUnroll) -> None:
        """Trap 13 at this level: the same observation after another past has another value."""
        problem = draw(Case(P=1, B=2, S=2, burn_in=0, resets=False, terminations=False, padding=False)).to(F64)
        x = problem.batch.features_online.clone()
        x[:, 1, 1:] = x[:, 0, 1:]
        zero = torch.zeros_like(problem.batch.h0)
        out = td(td_unroll, problem.with_batch(features_online=x, h0=zero, c0=zero, action=torch.zeros(1, 2, 2).long()))
        assert float((out.q_taken[0, 0, 1] - out.q_taken[0, 1, 1]).abs()) > 1e-3

    controls: ClassVar[Controls] = {
        "check_values": [mutants.state_dropped, mutants.state_stored_after],
        "check_gradient": [mutants.state_dropped, mutants.state_detached_each_step],
        "check_aliased_observations_differ_by_their_past": [mutants.state_dropped],
    }


class Trap2TargetState(Trap):
    """The target network has its own carried state, from the stored one, under its own weights and features."""

    @staticmethod
    def problem() -> Problem:
        # c0 = 0.5; online sums 0.6 0.8 1.1; target sums (its own steps) 0.7 1.0 1.4, and its head doubles
        c0 = torch.full((1, 1, 1), 0.5, dtype=F64)
        steps = [[[0.1], [0.2], [0.3]]], [[[0.2], [0.3], [0.4]]]
        p = counter(*steps, SPEC, action=[0, 0], reward=[0, 0], c0=c0)
        assert p.target is not None
        return p._replace(target=p.target._replace(w_adv=2 * p.target.w_adv))

    @staticmethod
    def check_values(td_unroll: TDUnroll) -> None:
        # gamma 0.5 halves what the head doubles: tanh(1.0) - tanh(0.6), tanh(1.4) - tanh(0.8)
        out = td(td_unroll, Trap2TargetState.problem())
        close(out.td_error, [math.tanh(1.0) - math.tanh(0.6), math.tanh(1.4) - math.tanh(0.8)], TOL)

    @staticmethod
    def check_reset(td_unroll: TDUnroll) -> None:
        # both states are zeroed before observation 1, transition 0 is no longer valid: target 0.3, 0.7; online 0.2
        p = Trap2TargetState.problem().with_batch(reset=mask(0, 1, 0))
        close(td(td_unroll, p).td_error, [0.0, math.tanh(0.7) - math.tanh(0.2)], TOL)

    controls: ClassVar[Controls] = {
        "check_values": [
            mutants.state_dropped,
            mutants.target_zero_each_step,
            mutants.target_starts_from_zero,
            mutants.target_zero_at_step_1,
            mutants.target_under_online_state,
            mutants.target_under_online_weights,
            mutants.target_reads_online_features,
        ],
        "check_reset": [mutants.resets_ignored, mutants.next_episode_as_successor],
    }


class Trap3WindowEnd(Trap):
    """The window's last step is not the episode's last."""

    @staticmethod
    def check_one_transition(td_unroll: TDUnroll) -> None:
        # r + 0.5 v - q = 1 + 5 - 2: in a window of one step gamma still acts
        out = td(td_unroll, table([[[2.0], [0.0]]], [[[0.0], [10.0]]], SPEC, action=[0], reward=[1]))
        close(out.td_error, [4.0], TOL)

    @staticmethod
    def check_gamma_matters(td_unroll: TDUnroll) -> None:
        p = table([[[0.0]] * 4], [[[10.0]] * 4], SPEC, action=[0] * 3, reward=[0] * 3)
        close(td(td_unroll, p.with_spec(n_step=3)).td_error, [1.25, 2.5, 5.0], TOL)
        close(td(td_unroll, p.with_spec(n_step=3, gamma=0.0)).td_error, [0.0, 0.0, 0.0], TOL)
        close(td(td_unroll, p.with_spec(n_step=1, gamma=1.0)).td_error, [10.0, 10.0, 10.0], TOL)

    BROKEN: ClassVar = [
        mutants.last_step_terminal,
        mutants.truncation_terminal,
        mutants.value_one_step_late,
    ]
    controls: ClassVar[Controls] = {
        "check_one_transition": BROKEN,
        "check_gamma_matters": [*BROKEN[:2], mutants.tail_without_bootstrap],
    }


class Trap4Truncation(Trap):
    """v = 10 everywhere, r = 0, gamma = 0.9, n = 5; six transitions: G = 10 * 0.9 ** min(5, 6 - t)."""

    GOLDEN = (5.9049, 5.9049, 6.561, 7.29, 8.1, 9.0)
    SPEC = TDSpec(gamma=0.9, n_step=5, double_q=False)

    @staticmethod
    def problem(value: list[float], **fields: Tensor) -> Problem:
        """Q online is 0, so td_error is G; a reward of 7 waits wherever none may be read."""
        S = len(value) - 1
        q, v = [[[0.0]] * (S + 1)], [[[v] for v in value]]
        p = table(q, v, Trap4Truncation.SPEC, action=[0] * S, reward=[0] * S, **fields)
        return p.with_batch(reward=torch.where(valid(p.batch), 0.0, 7.0).to(F64))

    @staticmethod
    def check_at_the_window_end(td_unroll: TDUnroll) -> None:
        close(td(td_unroll, Trap4Truncation.problem([10.0] * 7)).td_error, Trap4Truncation.GOLDEN, TOL)

    @staticmethod
    def check_before_padding(td_unroll: TDUnroll) -> None:
        # observation 6 is the episode's true last one (value 10); what follows is padding (value 3)
        p = Trap4Truncation.problem([10.0] * 7 + [3.0] * 2, mask=mask(1, 1, 1, 1, 1, 1, 0, 0))
        close(td(td_unroll, p).td_error, [*Trap4Truncation.GOLDEN, 0.0, 0.0], TOL)

    @staticmethod
    def check_before_the_next_episode(td_unroll: TDUnroll) -> None:
        # transition 6 leads from the last observation to the next episode's first, where v = 3: 0.9^2 * 3, 0.9 * 3
        for real in (mask(1, 1, 1, 1, 1, 1, 0, 1, 1), mask(1, 1, 1, 1, 1, 1, 1, 1, 1)):
            p = Trap4Truncation.problem([10.0] * 7 + [3.0] * 3, mask=real, reset=mask(0, 0, 0, 0, 0, 0, 0, 1, 0, 0))
            close(td(td_unroll, p).td_error, [*Trap4Truncation.GOLDEN, 0.0, 2.43, 2.7], TOL)

    @staticmethod
    def check_termination_is_something_else(td_unroll: TDUnroll) -> None:
        # transition 2 terminates: the three before the cut know no value, then 10 * 0.9 ** (6 - t)
        p = Trap4Truncation.problem([10.0] * 7, terminated=mask(0, 0, 1, 0, 0, 0))
        close(td(td_unroll, p).td_error, [0.0, 0.0, 0.0, 7.29, 8.1, 9.0], TOL)

    TAIL: ClassVar = [
        mutants.last_step_terminal,
        mutants.truncation_terminal,
        mutants.tail_without_bootstrap,
        mutants.tail_dropped,
    ]
    controls: ClassVar[Controls] = {
        "check_at_the_window_end": TAIL,
        "check_before_padding": [mutants.truncation_terminal, mutants.padding_terminal, mutants.mask_ignored],
        "check_before_the_next_episode": [
            mutants.truncation_terminal,
            mutants.padding_terminal,
            mutants.next_episode_as_successor,
        ],
        "check_termination_is_something_else": [mutants.bootstraps_through_termination],
    }


class Trap5InputsUntouched(Trap):
    """A training update neither clears nor advances a state it was lent, and a second call repeats the first."""

    @staticmethod
    def check_inputs(td_unroll: TDUnroll) -> None:
        problem = leaves(draw(Case()).to(F64))
        before = problem.map(lambda v: v.detach().clone())
        first = td(td_unroll, problem)
        first.loss.sum().backward()
        for name, was, now in zip(SequenceBatch._fields, before.batch, problem.batch, strict=True):
            assert was is None or torch.equal(was.nan_to_num(7.5), now.detach().nan_to_num(7.5)), name
        for was, now in zip(before.online, problem.online, strict=True):
            assert was is None or torch.equal(was, now.detach())
        second = td(td_unroll, problem)
        for name, a, b in zip(TDOutput._fields, first, second, strict=True):
            assert torch.equal(a, b), name

    @staticmethod
    def check_final_state_is_the_state_after_the_window(td_unroll: TDUnroll) -> None:
        # sums 0.1, 0.3, 0.6, then the window that starts from the final state goes on: 1.0
        p = counter([[[0.1], [0.2], [0.3]]], None, SPEC, action=[0, 0], reward=[0, 0])
        out = td(td_unroll, p)
        state = {"h0": out.h_final.to(F64), "c0": out.c_final.to(F64)}
        q = counter([[[0.4], [0.0]]], None, SPEC, action=[0], reward=[0], **state)
        close(td(td_unroll, q).q_taken, tanh(1.0), TOL)

    controls: ClassVar[Controls] = {
        "check_inputs": [mutants.clears_the_state, mutants.advances_the_state],
        "check_final_state_is_the_state_after_the_window": [mutants.state_dropped, mutants.state_stored_after],
    }


class Trap6BurnIn(Trap):
    """Each network burns in under its own weights, and no gradient passes through burn-in."""

    @staticmethod
    def check_target(td_unroll: TDUnroll) -> None:
        # every feature is atanh(0.5); online steps are 0.5. The target's input weight is 2: its steps are
        # tanh(2 atanh(0.5)) = 1 / 1.25 = 0.8. L = 2: the errors of steps 2 and 3 see target sums 3.2 and 4.0
        p = counter([[[0.5]] * 5], [[[0.5]] * 5], SPEC, action=[0] * 4, reward=[0] * 4).with_spec(burn_in=2)
        assert p.target is not None
        p = p._replace(target=p.target._replace(w_ih=2 * p.target.w_ih))
        q = tanh(0.5, 1.0, 1.5, 2.0)
        out = td(td_unroll, p)
        close(out.q_taken, q, TOL)
        close(out.td_error, [0.0, 0.0, math.tanh(3.2) / 2 - q[2], math.tanh(4.0) / 2 - q[3]], TOL)

    @staticmethod
    def check_exact_zeros(td_unroll: TDUnroll) -> None:
        """features_online gets exactly 0 in burn-in and at index S, and something in between."""
        grad = evaluate(td_unroll, draw(Case(S=9, burn_in=4, padding=False)).to(F64))["grad.features_online"]
        assert not bool(grad[:, :, :4].any())
        assert not bool(grad[:, :, 9].any())
        assert bool(grad[:, :, 4:9].any(-1).any(0).any(0).all())

    @staticmethod
    def check_equals_a_window_that_starts_there(td_unroll: TDUnroll) -> None:
        """With one network, burn-in is the same as a shorter window from the state it ends in."""
        L, case = 3, Case(S=8, burn_in=3, target=False, terminations=False, resets=False, padding=False)
        long = draw(case).to(F64)
        w, b = long.online, long.batch
        _, h, c = reference.lstm_unroll(b.features_online[:, :, :L], b.h0, b.c0, w.w_ih, w.w_hh, w.bias)
        cut = {name: getattr(b, name)[:, :, L:] for name in SequenceBatch._fields[4:9]}
        assert b.legal is not None
        x, legal = b.features_online[:, :, L:], b.legal[:, :, L:]
        short = long.with_batch(**cut, features_online=x, legal=legal, h0=h, c0=c).with_spec(burn_in=0)
        got, want = evaluate(td_unroll, long), evaluate(reference.td_unroll, short)
        for name in want:
            if name not in ("td_error", "q_taken", "grad.features_online"):
                assert deviation(got[name], want[name]).scaled < 5e-6, name  # observed 3.5e-7
        assert deviation(got["grad.features_online"][:, :, L:], want["grad.features_online"]).scaled < 5e-6

    @staticmethod
    def check_no_gradient_through_y(td_unroll: TDUnroll) -> None:
        """With one network, the step that only serves as successor is a constant."""
        p = table([[[1.0], [2.0], [4.0]]], None, SPEC, action=[0, 0], reward=[0, 0])
        grads = evaluate(td_unroll, p)
        # errors 1 - 1 = 0 and 2 - 2 = 0: nothing moves; with a reward of 1 both errors are 1, b_adv gets -(1 + 1)/2
        assert not any(bool((v.abs() > TOL).any()) for n, v in grads.items() if n.startswith("grad."))
        grads = evaluate(td_unroll, p.with_batch(reward=torch.ones(1, 1, 2, dtype=F64)))
        close(grads["grad.b_adv"], [-1.0], TOL)
        assert not bool(grads["grad.features_online"][:, :, 2].any())

    controls: ClassVar[Controls] = {
        "check_target": [mutants.target_burnt_in_with_online_weights, mutants.target_without_burn_in],
        "check_exact_zeros": [mutants.burn_in_gradient_leaks, mutants.gradient_through_y],
        "check_equals_a_window_that_starts_there": [mutants.burn_in_gradient_leaks, mutants.state_detached_each_step],
        "check_no_gradient_through_y": [mutants.gradient_through_y],
    }


class Trap7Alignment(Trap):
    """The stored state precedes observation 0; action, reward and value keep their steps."""

    @staticmethod
    def check_state_before_the_observation(td_unroll: TDUnroll) -> None:
        c0 = torch.full((1, 1, 1), 0.5, dtype=F64)
        p = counter([[[0.1], [0.2]]], [[[0.3], [0.4]]], SPEC, action=[0], reward=[0], c0=c0)
        out = td(td_unroll, p)
        close(out.q_taken, tanh(0.6), TOL)
        close(out.td_error, [math.tanh(1.2) / 2 - math.tanh(0.6)], TOL)
        close(out.c_final, [0.8], TOL)

    @staticmethod
    def check_steps(td_unroll: TDUnroll) -> None:
        # td = r_t + v_{t+1} / 2 - q_t(a_t): 1 + 2 - 2, 2 + 4 - 3, 4 + 5 - 6
        q = [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0]]]
        v = [[[9.0, 9.0], [4.0, 0.0], [0.0, 8.0], [10.0, 0.0]]]
        out = td(td_unroll, table(q, v, SPEC, action=[1, 0, 1], reward=[1, 2, 4]))
        close(out.q_taken, [2.0, 3.0, 6.0], TOL)
        close(out.td_error, [1.0, 3.0, 3.0], TOL)

    controls: ClassVar[Controls] = {
        "check_state_before_the_observation": [mutants.state_stored_after, mutants.target_zero_at_step_1],
        "check_steps": [mutants.action_one_step_late, mutants.reward_one_step_late, mutants.value_one_step_late],
    }


class Trap8Padding(Trap):
    """Masked steps are as if they were not there; short episodes are trained like long ones."""

    @staticmethod
    def check_garbage_is_ignored(td_unroll: TDUnroll) -> None:
        """Two fillings of what is not valid give the same bits."""
        problem = draw(Case(S=9, B=6)).to(F64)
        ok = valid(problem.batch)
        other = problem.with_batch(
            reward=problem.batch.reward.where(ok, 5.0),
            action=problem.batch.action.where(ok, 2),
            terminated=problem.batch.terminated ^ ~problem.batch.mask,
        )
        got, want = evaluate(td_unroll, problem), evaluate(td_unroll, other)
        for name in want:
            assert torch.equal(got[name], want[name]), name
            assert bool(got[name].isfinite().all()), name

    @staticmethod
    def check_padding_changes_nothing(td_unroll: TDUnroll) -> None:
        """Three padded steps appended to every sequence: the same loss, priorities and gradients."""
        problem = draw(Case(S=6, B=4, padding=False, legal=False)).to(F64)

        def longer(v: Tensor, value: float) -> Tensor:
            return torch.cat([v, torch.full_like(v[:, :, :3], value)], 2)

        b = problem.batch
        assert b.features_target is not None
        padded = problem.with_batch(
            features_online=longer(b.features_online, 0.7),
            features_target=longer(b.features_target, -0.7),
            action=longer(b.action, 1),
            reward=longer(b.reward, 9.0),
            terminated=longer(b.terminated, False),
            reset=longer(b.reset, False),
            mask=longer(b.mask, False),
        )
        got, want = evaluate(td_unroll, padded), evaluate(reference.td_unroll, problem)
        for name in ("loss", "priority", *(n for n in want if n.startswith("grad.") and n != "grad.features_online")):
            assert deviation(got[name], want[name]).scaled < 5e-6, name  # observed 1.3e-6
        for name in ("td_error", "q_taken"):
            assert deviation(got[name][:, :, :6], want[name]).scaled < 5e-6, name
            assert not bool(got[name][:, :, 6:].any())
        assert not bool(got["grad.features_online"][:, :, 6:].any())

    @staticmethod
    def check_masked_step_has_no_gradient(td_unroll: TDUnroll) -> None:
        # Q = 3 at the padded step would be pulled towards 0; error of the real step is 0 + 1 - 1 = 0: nothing moves
        p = table([[[1.0], [3.0], [0.0]]], [[[0.0], [2.0], [9.0]]], SPEC, action=[0, 0], reward=[0, 0], mask=mask(1, 0))
        grads = evaluate(td_unroll, p)
        assert float(grads["grad.b_adv"].abs()) < TOL

    @staticmethod
    def check_episodes_of_one_step(td_unroll: TDUnroll) -> None:
        # every transition terminates and the next observation starts anew: y = r; the loss counts all four, 1/2 each
        p = table(
            [[[1.0]] * 5], [[[10.0]] * 5], SPEC, action=[0] * 4, reward=[2.0] * 4,
            terminated=mask(1, 1, 1, 1), reset=mask(1, 1, 1, 1, 1),
        )  # fmt: skip
        out = td(td_unroll, p)
        close(out.td_error, [1.0] * 4, TOL)
        close(out.loss, [0.5], TOL)

    @staticmethod
    def check_short_sequences_are_trained(td_unroll: TDUnroll) -> None:
        # one real step of three: 4 + 5 - 1 = 8, loss 32 over one step
        p = table([[[1.0]] * 4], [[[10.0]] * 4], SPEC, action=[0] * 3, reward=[4.0] * 3, mask=mask(1, 0, 0))
        out = td(td_unroll, p)
        close(out.td_error, [8.0, 0.0, 0.0], TOL)
        close(out.loss, [32.0], 10 * TOL)

    controls: ClassVar[Controls] = {
        "check_garbage_is_ignored": [mutants.mask_ignored],
        "check_padding_changes_nothing": [
            mutants.mask_ignored,
            mutants.padding_trained_to_zero,
            mutants.normalised_by_all_steps,
            mutants.short_sequences_dropped,
        ],
        "check_masked_step_has_no_gradient": [mutants.mask_ignored, mutants.padding_trained_to_zero],
        "check_episodes_of_one_step": [mutants.bootstraps_through_termination],
        "check_short_sequences_are_trained": [
            mutants.mask_ignored,
            mutants.short_sequences_dropped,
            mutants.normalised_by_all_steps,
        ],
    }


class Trap10BatchOfOne(Trap):
    """Sizes of one keep their axes, and nothing is drawn from a global generator."""

    @staticmethod
    def check_shapes(td_unroll: TDUnroll) -> None:
        for sizes in ((1, 1, 1, 1, 1), (1, 1, 5, 2, 1), (1, 3, 1, 1, 4), (2, 1, 4, 3, 2)):
            P, B, S, D, H = sizes
            case = Case(P=P, B=B, S=S, D=D, H=H, F=1, A=1 + H % 2, burn_in=0)
            out = td(td_unroll, draw(case).to(F64))
            shapes = [(P,), (P, B, S), (P, B), (P, B, S), (P, B, H), (P, B, H)]
            assert [tuple(v.shape) for v in out] == shapes

    @staticmethod
    def check_generator(td_unroll: TDUnroll) -> None:
        problem = draw(Case()).to(F64)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = td(td_unroll, problem)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(td(td_unroll, problem).td_error, first.td_error)

    controls: ClassVar[Controls] = {"check_shapes": [mutants.squeezed], "check_generator": [mutants.global_generator]}


TRAPS = Trap.__subclasses__()
CHECKS = [(trap, name) for trap in TRAPS for name in vars(trap) if name.startswith("check_")]


@pytest.mark.parametrize("td_unroll", [reference.td_unroll, kernel], ids=["twin", "kernel"])
@pytest.mark.parametrize(("trap", "name"), CHECKS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_holds(trap: type[Trap], name: str, td_unroll: TDUnroll) -> None:
    getattr(trap, name)(td_unroll)


CONTROLS = [(trap, name, broken) for trap, name in CHECKS for broken in trap.controls[name]]


@pytest.mark.parametrize(("trap", "name", "broken"), CONTROLS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_control_fails(trap: type[Trap], name: str, broken: TDUnroll) -> None:
    with pytest.raises(AssertionError):
        getattr(trap, name)(broken)


def test_every_mutation_is_caught_somewhere() -> None:
    """No mutation lies unused, and none is the twin itself under another name."""
    helpers = {"broken", "for_target", "steps", "zeros", "cell", "unroll_q", "n_step_return", "valid_transitions"}
    everything = {
        f
        for name, f in vars(mutants).items()
        if inspect.isfunction(f) and (f.__module__ == mutants.__name__) and name not in helpers
    }
    assert everything == {broken for _, _, broken in CONTROLS}
    assert len(everything) >= 28


def test_every_check_has_a_control() -> None:
    for trap, name in CHECKS:
        assert trap.controls[name], (trap, name)
