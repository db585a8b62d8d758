"""Golden arrays of `td_unroll`, worked out by hand, for the compiled operator (float32) and its twin (float64).

The networks are built so that every number is known without running one: `table` gives Q-values as listed, `counter`
gives Q = tanh of a running sum (see op_cases.py). The arithmetic stands in the comments.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from op_cases import Problem, TDUnroll, close, counter, evaluate, kernel_td_unroll, table
from torch import Tensor

from townlet import reference
from townlet.ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

# Absolute tolerances on values up to 15; observed: twin 1.4e-15, kernel 4.8e-7.
PATHS = [
    pytest.param((reference.td_unroll, torch.float64, 1e-14), id="twin"),
    pytest.param((kernel_td_unroll, torch.float32, 2e-6), id="kernel"),
]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> tuple[TDUnroll, torch.dtype, float]:
    return request.param


Path = tuple[TDUnroll, torch.dtype, float]
PLAIN = TDSpec(gamma=0.5, double_q=False, loss="mse")


def run(path: Path, problem: Problem) -> tuple[TDOutput, float]:
    td_unroll, dtype, tol = path
    return td_unroll(*problem.to(dtype)), tol


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).view(1, 1, -1)


class TestHandNetworks:
    """The building blocks say what they claim."""

    def test_table(self, path: Path) -> None:
        q = [[[1.5, -7.0], [0.0, 14.0], [3.0, 2.0]]]
        problem = table(q, [[[0.0, 0.0]] * 3], PLAIN, action=[1, 0], reward=[0, 0])
        out, tol = run(path, problem)
        close(out.q_taken, [-7.0, 0.0], tol)

    def test_counter(self, path: Path) -> None:
        # steps 0.1, 0.2, 0.3 from c = 0: q = tanh(0.1), tanh(0.3); c_final = 0.6, h_final = tanh(0.6)
        problem = counter([[[0.1], [0.2], [0.3]]], None, PLAIN, action=[0, 0], reward=[0, 0])
        out, tol = run(path, problem)
        close(out.q_taken, [math.tanh(0.1), math.tanh(0.3)], tol)
        close(out.c_final, [0.6], tol)
        close(out.h_final, [math.tanh(0.6)], tol)


class TestTarget:
    """Which value is bootstrapped."""

    Q_ONLINE = (((0.0, 0.0, 0.0), (1.0, 3.0, 2.0), (5.0, 4.0, 6.0)),)
    Q_TARGET = (((9.0, 9.0, 9.0), (10.0, 2.0, 4.0), (8.0, 12.0, 6.0)),)

    def problem(self, spec: TDSpec, **fields: Tensor) -> Problem:
        return table(self.Q_ONLINE, self.Q_TARGET, spec, action=[0, 1], reward=[1.0, -1.0], **fields)

    def test_plain_q(self, path: Path) -> None:
        # max of the target: 1 + 10/2 - Q(0, 0) = 6 - 0; -1 + 12/2 - Q(1, 1) = 5 - 3
        out, tol = run(path, self.problem(PLAIN))
        close(out.td_error, [6.0, 2.0], tol)
        close(out.loss, [(36 + 4) / 2 / 2], 10 * tol)

    def test_double_q(self, path: Path) -> None:
        # the online network prefers action 1 (3.0), then action 2 (6.0): 1 + 2/2 - 0; -1 + 6/2 - 3
        out, tol = run(path, self.problem(replace(PLAIN, double_q=True)))
        close(out.td_error, [2.0, -1.0], tol)

    def test_one_network(self, path: Path) -> None:
        # target None: online's own maxima, 1 + 3/2 - 0; -1 + 6/2 - 3
        problem = table(self.Q_ONLINE, None, PLAIN, action=[0, 1], reward=[1.0, -1.0])
        for double_q in (False, True):
            out, tol = run(path, problem.with_spec(double_q=double_q))
            close(out.td_error, [2.5, -1.0], tol)

    @pytest.mark.parametrize(("double_q", "want"), [(False, [3.0, 0.0]), (True, [2.0, -1.0])])
    def test_legal(self, path: Path, double_q: bool, want: list[float]) -> None:
        # plain: u=1 allows {1, 2}, max(2, 4) = 4: 1 + 2 - 0; u=2 allows {0, 2}, max(8, 6) = 8: -1 + 4 - 3
        # double: u=1, online prefers 1 (value 2): 1 + 1 - 0; u=2, online prefers 2 (value 6): -1 + 3 - 3
        legal = torch.tensor([[[[1, 0, 0], [0, 1, 1], [1, 0, 1]]]], dtype=torch.bool)
        out, tol = run(path, self.problem(replace(PLAIN, double_q=double_q), legal=legal))
        close(out.td_error, want, tol)

    def test_no_legal_action_is_all_legal(self, path: Path) -> None:
        legal = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
        out, tol = run(path, self.problem(PLAIN, legal=legal))
        close(out.td_error, [6.0, 2.0], tol)

    def test_legal_does_not_touch_the_action_taken(self, path: Path) -> None:
        # the action taken at t = 1 is illegal there; its Q is trained all the same
        legal = torch.tensor([[[[0, 1, 1], [1, 0, 0], [1, 1, 1]]]], dtype=torch.bool)
        out, tol = run(path, self.problem(PLAIN, legal=legal))
        close(out.q_taken, [0.0, 3.0], tol)
        close(out.td_error, [6.0, 2.0], tol)

    def test_ties_go_to_the_lowest_index(self, path: Path) -> None:
        # online ties exactly between actions 1 and 2 (equal inputs, equal weights): the target's 4.0, not 8.0
        q = [[[0.0, 0.0, 0.0], [1.0, 3.0, 3.0]]]
        t = [[[0.0, 0.0, 0.0], [2.0, 4.0, 8.0]]]
        spec = replace(PLAIN, double_q=True)
        out, tol = run(path, table(q, t, spec, action=[0], reward=[0.0]))
        close(out.td_error, [2.0], tol)
        # with action 1 illegal the tie is between nobody
        legal = torch.tensor([[[[1, 1, 1], [1, 0, 1]]]], dtype=torch.bool)
        out, tol = run(path, table(q, t, spec, action=[0], reward=[0.0], legal=legal))
        close(out.td_error, [4.0], tol)

    def test_negative_values_beat_illegal_zeros(self, path: Path) -> None:
        # all legal values are negative: an illegal action must not win as a zero. 0 + (-3)/2 - 0
        q = [[[0.0, 0.0], [-3.0, 9.0]]]
        legal = torch.tensor([[[[1, 1], [1, 0]]]], dtype=torch.bool)
        out, tol = run(path, table(q, q, PLAIN, action=[0], reward=[0.0], legal=legal))
        close(out.td_error, [-1.5], tol)

    def test_member_gamma(self, path: Path) -> None:
        one = table([[[0.0], [4.0]]], [[[0.0], [8.0]]], PLAIN, action=[0], reward=[1.0])
        two = one.map(lambda v: torch.cat([v, v])).with_spec(gamma=torch.tensor([0.25, 0.75]))
        out, tol = run(path, two)
        close(out.td_error, [1 + 2.0, 1 + 6.0], tol)  # 1 + 0.25 * 8, 1 + 0.75 * 8


class TestRescaled:
    """eps = 0.001: h(3) = 1.003, h(8) = 2.008, hinv(1.003) = 3 (see test_reference.py)."""

    SPEC = replace(PLAIN, rescale_eps=1e-3)

    def test_target_in_rescaled_units(self, path: Path) -> None:
        # the target net says 1.003, that is a value of 3: G = 6.5 + 0.5 * 3 = 8, y = h(8) = 2.008, Q = 1
        problem = table([[[1.0], [0.0]]], [[[0.0], [1.003]]], self.SPEC, action=[0], reward=[6.5])
        out, tol = run(path, problem)
        close(out.td_error, [1.008], tol)

    def test_negative(self, path: Path) -> None:
        # -1.003 is -3: G = -6.5 - 1.5 = -8, y = -2.008, Q = 1
        problem = table([[[1.0], [0.0]]], [[[0.0], [-1.003]]], self.SPEC, action=[0], reward=[-6.5])
        out, tol = run(path, problem)
        close(out.td_error, [-3.008], tol)


class TestDueling:
    """q = val + adv - mean(adv) over all actions, legal or not."""

    def problem(self, **fields: Tensor) -> Problem:
        # advantages (3, 0, 6) of mean 3 and value 10 at every step: Q = (10, 7, 13); target: (0, 9, 3) of mean 4 and
        # value 5: Q = (1, 10, 4)
        p = table([[[3.0, 0.0, 6.0]] * 3], [[[0.0, 9.0, 3.0]] * 3], PLAIN, action=[1, 2], reward=[0.0, 0.0], **fields)

        def with_value(w: RecurrentQParams, value: float) -> RecurrentQParams:
            return w._replace(w_val=torch.zeros(1, 1, 3, dtype=torch.float64), b_val=torch.full((1, 1), value).double())

        assert p.target is not None
        return p._replace(online=with_value(p.online, 10.0), target=with_value(p.target, 5.0))

    def test_mean_over_all_actions(self, path: Path) -> None:
        out, tol = run(path, self.problem())
        close(out.q_taken, [7.0, 13.0], tol)
        close(out.td_error, [10 / 2 - 7, 10 / 2 - 13], tol)

    def test_illegal_actions_count_in_the_mean(self, path: Path) -> None:
        # action 1 illegal: the best legal target value is 4, not what a mean over legal actions (1.5) would make of it
        legal = torch.tensor([1, 0, 1], dtype=torch.bool).expand(1, 1, 3, 3)
        out, tol = run(path, self.problem(legal=legal))
        close(out.q_taken, [7.0, 13.0], tol)
        close(out.td_error, [4 / 2 - 7, 4 / 2 - 13], tol)

    def test_gradient_by_hand(self, path: Path) -> None:
        # mse, two valid steps: dL/dQ(t, a_t) = -td_error / 2. Errors -2 and -8: dQ = 1 (action 1), 4 (action 2).
        # b_val gets the sum, 5. b_adv_a gets dQ_a - (1 + 4)/3: (-5/3, 1 - 5/3, 4 - 5/3)
        td_unroll, dtype, tol = path
        grads = evaluate(td_unroll, self.problem().to(dtype))
        close(grads["grad.b_val"], [5.0], tol)
        close(grads["grad.b_adv"], [-5 / 3, -2 / 3, 7 / 3], tol)


class TestHiddenHead:
    """The ReLU layer cuts what is negative and its two units feed both streams."""

    def test_relu(self, path: Path) -> None:
        # h = tanh(0.5) = t. Hidden: relu(2 t + 0.1), relu(-3 t) = 0. adv = (1 * u0 + 5 * u1, 0); value = -u0.
        # mean(adv) = u0 / 2, so Q = (u0/2 - u0, -u0/2 - u0) = (-u0/2, -3 u0/2) with u0 = 2 t + 0.1
        p = counter([[[0.5], [0.0]]], None, PLAIN, action=[1], reward=[0.0], terminated=mask(1))
        f64 = {"dtype": torch.float64}
        online = p.online._replace(
            w_fc=torch.tensor([[[2.0], [-3.0]]], **f64),
            b_fc=torch.tensor([[0.1, 0.0]], **f64),
            w_adv=torch.tensor([[[1.0, 5.0], [0.0, 0.0]]], **f64),
            b_adv=torch.zeros(1, 2, **f64),
            w_val=torch.tensor([[[-1.0, 7.0]]], **f64),
            b_val=torch.zeros(1, 1, **f64),
        )
        out, tol = run(path, p._replace(online=online))
        u0 = 2 * math.tanh(0.5) + 0.1
        close(out.q_taken, [-1.5 * u0], tol)
        close(out.td_error, [1.5 * u0], tol)


class TestLoss:
    """Two sequences of two transitions, v = 0 everywhere and Q = 0: the errors are the rewards."""

    REWARD = ((0.5, -4.0), (3.0, 1.0))

    def problem(self, spec: TDSpec, **fields: Tensor) -> Problem:
        zeros = [[[0.0]] * 3] * 2
        return table(zeros, zeros, spec, action=[[0, 0], [0, 0]], reward=self.REWARD, **fields)

    def test_mse(self, path: Path) -> None:
        # (0.25 + 16 + 9 + 1) / 2 / 4
        out, tol = run(path, self.problem(PLAIN))
        close(out.loss, [26.25 / 8], tol)

    def test_huber_is_torch_huber(self, path: Path) -> None:
        # d = 2: 0.125, 2 (4 - 1), 2 (3 - 1), 0.5: the sum 10.625 over 4. smooth_l1 would halve the large ones
        out, tol = run(path, self.problem(replace(PLAIN, loss="huber", huber_delta=2.0)))
        close(out.loss, [10.625 / 4], tol)
        errors = torch.tensor(self.REWARD, dtype=torch.float64)
        close(out.loss, [float(torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), delta=2.0))], tol)

    def test_weights_are_not_in_the_normaliser(self, path: Path) -> None:
        # weights 2 and 0.5: (2 * (0.125 + 8) + 0.5 * (4.5 + 0.5)) / 4, not / (2 + 2 + 0.5 + 0.5)
        out, tol = run(path, self.problem(PLAIN, weight=torch.tensor([[2.0, 0.5]], dtype=torch.float64)))
        close(out.loss, [18.75 / 4], tol)

    def test_masked_positions_leave_the_normaliser(self, path: Path) -> None:
        # only -4 and 3 are valid: (8 + 4.5) / 2. Rewards where masked are NaN.
        real = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.bool)
        p = self.problem(PLAIN, mask=real)
        reward = p.batch.reward.masked_fill(~real, float("nan"))
        out, tol = run(path, p.with_batch(reward=reward, action=p.batch.action.masked_fill(~real, -5)))
        close(out.loss, [12.5 / 2], tol)
        close(out.td_error, [[0.0, -4.0], [3.0, 0.0]], tol)
        close(out.q_taken, [[0.0, 0.0], [0.0, 0.0]], tol)

    def test_burn_in_leaves_the_normaliser(self, path: Path) -> None:
        # L = 1: errors -4 and 1: (8 + 0.5) / 2
        out, tol = run(path, self.problem(replace(PLAIN, burn_in=1)))
        close(out.loss, [8.5 / 2], tol)
        close(out.td_error, [[0.0, -4.0], [0.0, 1.0]], tol)

    def test_priority(self, path: Path) -> None:
        # eta 0.9: 0.9 * 4 + 0.1 * 2.25, 0.9 * 3 + 0.1 * 2; the importance weight does not enter
        out, tol = run(path, self.problem(PLAIN, weight=torch.tensor([[2.0, 0.5]], dtype=torch.float64)))
        close(out.priority, [3.825, 2.9], tol)

    def test_priority_over_valid_steps_only(self, path: Path) -> None:
        # sequence 0 keeps its first step: 0.5 whatever eta; sequence 1 keeps none: 0
        real = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.bool)
        out, tol = run(path, self.problem(replace(PLAIN, eta=0.3), mask=real))
        close(out.priority, [0.5, 0.0], tol)

    def test_members_are_normalised_apart(self, path: Path) -> None:
        p = self.problem(PLAIN)
        two = p.map(lambda v: torch.cat([v, v]))
        real = two.batch.mask.clone()
        real[1, 1] = False  # member 1 keeps 0.5 and -4
        out, tol = run(path, two.with_batch(mask=real))
        close(out.loss, [26.25 / 8, 16.25 / 4], tol)

    def test_gradient_by_hand(self, path: Path) -> None:
        # huber d = 2: dL/dQ = -clip(error, -2, 2) / 4 = (-0.125, 0.5, -0.5, -0.25); b_adv gets the sum, -0.375
        td_unroll, dtype, tol = path
        spec = replace(PLAIN, loss="huber", huber_delta=2.0)
        grads = evaluate(td_unroll, self.problem(spec).to(dtype))
        close(grads["grad.b_adv"], [-0.375], tol)
        # incoming gradient 3 of the member's loss
        grads = evaluate(td_unroll, self.problem(spec).to(dtype), torch.tensor([3.0]))
        close(grads["grad.b_adv"], [-1.125], tol)


class TestBatchAsDocumented:
    """Where things are, on the running sum."""

    def test_reset_zeroes_before_the_observation(self, path: Path) -> None:
        # c0 = 1, steps 0.1 0.2 0.3 0.4, reset at 2: c = 1.1, 1.3, 0.3, 0.7. Transition 1 leads into another episode.
        p = counter(
            [[[0.1], [0.2], [0.3], [0.4]]], None, PLAIN, action=[0, 0, 0], reward=[0.0, float("nan"), 0.0],
            c0=torch.ones(1, 1, 1, dtype=torch.float64), reset=mask(0, 0, 1, 0),
        )  # fmt: skip
        out, tol = run(path, p)
        q = [math.tanh(c) for c in (1.1, 1.3, 0.3, 0.7)]
        close(out.q_taken, [q[0], 0.0, q[2]], tol)
        # gamma 0.5: transition 0 bootstraps from Q(1), which belongs to its own episode
        close(out.td_error, [q[1] / 2 - q[0], 0.0, q[3] / 2 - q[2]], tol)
        close(out.c_final, [0.7], tol)

    def test_terminated_into_the_next_episode_is_valid(self, path: Path) -> None:
        # as above, but transition 1 terminates with reward 2: its target is 2 and nothing of the next episode
        p = counter(
            [[[0.1], [0.2], [0.3], [0.4]]], None, PLAIN, action=[0, 0, 0], reward=[0.0, 2.0, 0.0],
            c0=torch.ones(1, 1, 1, dtype=torch.float64), reset=mask(0, 0, 1, 0), terminated=mask(0, 1, 0),
        )  # fmt: skip
        out, tol = run(path, p)
        close(out.td_error[0, 0, 1], 2 - math.tanh(1.3), tol)
        # and two steps back from transition 0: 0 + 0.5 * 2, no bootstrap
        out, tol = run(path, p.with_spec(n_step=2))
        close(out.td_error[0, 0, 0], 1 - math.tanh(1.1), tol)

    def test_reset_at_the_first_observation(self, path: Path) -> None:
        # both networks forget the stored state: c = 0.1, 0.3 and for the target 0.2, 0.5
        f64 = torch.float64
        p = counter(
            [[[0.1], [0.2]]], [[[0.2], [0.3]]], PLAIN, action=[0], reward=[0.0],
            c0=torch.full((1, 1, 1), 5.0, dtype=f64), h0=torch.full((1, 1, 1), 0.5, dtype=f64), reset=mask(1, 0),
        )  # fmt: skip
        out, tol = run(path, p)
        close(out.q_taken, [math.tanh(0.1)], tol)
        close(out.td_error, [math.tanh(0.5) / 2 - math.tanh(0.1)], tol)

    def test_padding_is_still_unrolled(self, path: Path) -> None:
        """The final state is after observation S, whatever the mask says of the transitions."""
        p = counter([[[0.1], [0.2], [0.3]]], None, PLAIN, action=[0, 0], reward=[0.0, 0.0], mask=mask(1, 0))
        out, tol = run(path, p)
        close(out.c_final, [0.6], tol)
        close(out.q_taken, [math.tanh(0.1), 0.0], tol)


def test_controls_differ() -> None:
    """Control: the tolerance tells the hand-made values from their nearest wrong reading."""
    with pytest.raises(AssertionError):
        close(torch.tensor([5.9049]), [5.9048], 2e-5)
    with pytest.raises(AssertionError):
        close(torch.tensor([float("nan")]), [0.0], 2e-5)
    batch: SequenceBatch = table([[[0.0], [0.0]]], None, PLAIN, action=[0], reward=[0.0]).batch
    assert batch.features_target is None
