"""Learning that needs memory in the bootstrapped values, and the broken learners that must fail at it.

The task, four steps long: a cue (A or B) -> a choice, seen alike after both cues -> the choice made is visible once ->
a wait, seen alike after everything -> reward 1 if the choice matched the cue. One-step targets carry that reward back
only if the target network still knows, at each step, what was seen and done before.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from townlet import ops
from townlet.learning.learner import Learner
from townlet.learning.networks import RecurrentQNetwork, cut_memory
from townlet.learning.population import VectorizedPopulation
from townlet.learning.replay import SequentialReplayBuffer
from townlet.ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

pytestmark = pytest.mark.usefixtures("one_thread")
GAMMA = 0.9
TOLERANCE = 0.05  # worst seen over 16 seeds: 0.008; broken learners: 0.5 and more
CUE, CHOOSE, CHOSEN, WAIT, END = (0, 1), 2, (3, 4), 5, 6
OBS_SIZE, EPISODES = 7, 128
UPDATES, LOWER_LR_AFTER = 700, 500  # the smaller step at the end takes Adam's noise out of the Q-values

TDUnroll = Callable[..., TDOutput]


def episode(cue: int, choice: int) -> Tensor:
    """The five observations [5, 7] of an episode, final one included."""
    return torch.eye(OBS_SIZE)[[CUE[cue], CHOOSE, CHOSEN[choice], WAIT, END]]


def optimum(cue: int, choice: int) -> Tensor:
    """Closed form: Q of both actions at each of the four steps [4, 2]; only the choice's action matters."""
    match = float(cue == choice)
    choose = [GAMMA**2 * float(action == cue) for action in (0, 1)]
    return torch.tensor([[GAMMA**3] * 2, choose, [GAMMA * match] * 2, [match] * 2])


def build(seeds: list[int]) -> tuple[VectorizedPopulation, SequentialReplayBuffer]:
    """Five members and, for each, random behaviour: every action drawn, so both occur in every situation."""
    network = RecurrentQNetwork(OBS_SIZE, 2, encoder=(16,), hidden_size=32, head_size=None, dueling=False)
    population = VectorizedPopulation(network, seeds, num_envs=1, gamma=GAMMA, lr=5e-3)
    replay = SequentialReplayBuffer(
        members=len(seeds), num_envs=1, capacity=5 * (EPISODES + 1), obs_size=OBS_SIZE, n_actions=2, hidden_size=32,
        seq_len=5, stride=5, seeds=seeds, store_legal=False,
    )  # fmt: skip
    for member, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        for _ in range(EPISODES + 1):  # a window ends on the next episode's first observation, so the last is not seen
            cue, actions = int(rng.integers(2)), rng.integers(2, size=4)
            reward = np.array([0, 0, 0, float(actions[1] == cue)])
            replay.add_episode(member, episode(cue, int(actions[1])), actions, reward, terminated=True)
    return population, replay


def q_values(population: VectorizedPopulation, memory: bool = True) -> Tensor:
    """Q along all four histories with carried (or dropped) state: [P, cue, choice, 4 steps, 2 actions]."""
    P, network = population.members, population.network
    histories = torch.stack([episode(cue, choice)[:4] for cue in (0, 1) for choice in (0, 1)])
    with torch.no_grad():
        x = network.encode(population.online, histories.expand(P, 4, 4, OBS_SIZE))
        zero = torch.zeros(P, 4, network.hidden_size)
        w = network.recurrent(population.online)
        w = w if memory else cut_memory(w)
        y, _, _ = ops.lstm_unroll(x, zero, zero, w.w_ih, w.w_hh, w.bias, None)
        return network.q_values(population.online, y.flatten(1, 2)).view(P, 2, 2, 4, 2)


def worst_error(population: VectorizedPopulation, memory: bool = True) -> Tensor:
    """Largest distance of a member's Q-values from the optimum [P]."""
    best = torch.stack([torch.stack([optimum(cue, choice) for choice in (0, 1)]) for cue in (0, 1)])
    return (q_values(population, memory) - best).abs().flatten(1).amax(1)


def greedy_right(population: VectorizedPopulation, memory: bool = True) -> Tensor:
    """Whether a member's greedy choice matches the cue after both cues [P]."""
    choice = q_values(population, memory)[:, :, 0, 1].argmax(-1)  # [P, cue]; what is chosen later is not seen yet
    return (choice == torch.tensor([0, 1])).all(1)


def solved(population: VectorizedPopulation, memory: bool = True) -> Tensor:
    """The check that the honest learner passes and every broken one fails [P]."""
    return (worst_error(population, memory) < TOLERANCE) & greedy_right(population, memory)


def train(td_unroll: Callable[[VectorizedPopulation], TDUnroll] | None = None, use_target: bool = True) -> Learner:
    population, replay = build([0, 1, 2, 3, 4])
    spec = TDSpec(gamma=GAMMA, n_step=1, burn_in=0)
    learner = Learner(
        population, replay, spec, batch_size=32, sync_every=10, use_target=use_target,
        td_unroll=None if td_unroll is None else td_unroll(population),
    )  # fmt: skip
    for _ in range(LOWER_LR_AFTER):
        learner.update()
    population.lr *= 0.2
    for _ in range(UPDATES - LOWER_LR_AFTER):
        learner.update()
    return learner


def test_data_hold_both_actions_in_every_situation() -> None:
    _, replay = build([0, 1, 2, 3, 4])
    sample = replay.sample(200)
    assert not sample.reset[:, :, 1:5].any(), "a window is not one whole episode"
    assert sample.reset[:, :, 0].all(), "a window is not one whole episode"
    cue, action = sample.obs[:, :, 0, 1].long(), sample.action
    for member in range(5):
        for step in range(4):
            seen = set(zip(cue[member].tolist(), action[member, :, step].tolist(), strict=True))
            assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_lstm_learns_temporal_sequence() -> None:
    learner = train()
    population = learner.population
    assert population.members == 5
    assert learner.updates <= 2000
    assert solved(population).all(), f"worst errors {worst_error(population)}"
    gradient = population.online["lstm.w_hh"].grad
    assert gradient is not None
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_it_fails_with_the_target_state_zeroed_at_each_step() -> None:
    def broken(population: VectorizedPopulation) -> TDUnroll:
        def td_unroll(online: RecurrentQParams, _: object, batch: SequenceBatch, spec: TDSpec) -> TDOutput:
            target = population.network.recurrent(population.target_network)
            return ops.td_unroll(online, cut_memory(target), batch, spec)

        return td_unroll

    population = train(broken).population
    assert not solved(population).any(), f"worst errors {worst_error(population)}"


def test_it_fails_with_the_target_started_from_zero_at_step_one() -> None:
    def broken(population: VectorizedPopulation) -> TDUnroll:
        def td_unroll(online: RecurrentQParams, _: object, batch: SequenceBatch, spec: TDSpec) -> TDOutput:
            # one more feature, 1 at step 0 only, shuts the target's input gate there: its state is zero before step 1
            target = population.network.recurrent(population.target_network)
            P, H4, H = online.w_hh.shape
            shut = torch.zeros(P, H4, 1)
            shut[:, :H] = -1e4
            assert batch.features_target is not None
            first = torch.zeros_like(batch.features_target[..., :1])
            first[:, :, 0] = 1.0
            return ops.td_unroll(
                online._replace(w_ih=torch.cat((online.w_ih, torch.zeros(P, H4, 1)), 2)),
                target._replace(w_ih=torch.cat((target.w_ih, shut), 2)),
                batch._replace(
                    features_online=torch.cat((batch.features_online, first), -1),
                    features_target=torch.cat((batch.features_target, first), -1),
                ),
                spec,
            )

        return td_unroll

    population = train(broken).population
    assert not solved(population).any(), f"worst errors {worst_error(population)}"


def test_it_fails_with_the_online_state_dropped() -> None:
    def broken(population: VectorizedPopulation) -> TDUnroll:
        def td_unroll(online: RecurrentQParams, target: object, batch: SequenceBatch, spec: TDSpec) -> TDOutput:
            return ops.td_unroll(cut_memory(online), population.packed_target, batch, spec)

        return td_unroll

    population = train(broken).population
    for memory in (True, False):  # whether it then acts with its state or without
        assert not solved(population, memory).any(), f"worst errors {worst_error(population, memory)}"


def test_detached_states_without_a_target_network_choose_right() -> None:
    population = train(use_target=False).population
    assert greedy_right(population).all(), f"worst errors {worst_error(population)}"


@pytest.mark.parametrize("cue", [0, 1])
def test_the_optimum_obeys_bellman(cue: int) -> None:
    for choice in (0, 1):
        q = optimum(cue, choice)
        assert torch.allclose(q[0], GAMMA * q[1].max().expand(2))
        assert torch.isclose(q[1, choice], GAMMA * q[2].max())
        assert torch.allclose(q[2], GAMMA * q[3].max().expand(2))
        assert torch.equal(q[3], torch.full((2,), float(cue == choice)))
