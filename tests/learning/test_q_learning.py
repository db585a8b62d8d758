"""The target network: used in the loss, frozen between syncs, hard and soft sync exact; losses by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from townlet.learning.learner import Learner
from townlet.learning.networks import RecurrentQNetwork
from townlet.learning.population import VectorizedPopulation
from townlet.learning.replay import SequentialReplayBuffer
from townlet.ops import TDSpec

pytestmark = pytest.mark.usefixtures("one_thread")
GAMMA = 0.9
ONLINE, TARGET = (1.0, 3.0, 2.0), (5.0, -1.0, 7.0)  # Q-values of the three actions, everywhere
REWARD = 0.5


def constant(population: VectorizedPopulation, weights: dict[str, Tensor], q: tuple[float, ...]) -> None:
    """Makes a network whose Q-values are `q` whatever it sees."""
    with torch.no_grad():
        weights["head.adv.weight"].zero_()
        weights["head.adv.bias"].copy_(torch.tensor(q))


def make(*, double_q: bool = True, sync_every: int = 1000, last: str = "running", legal: tuple[bool, ...] | None = None,
         td_unroll: Any = None, lr: float = 1e-2, tau: float | None = None, use_target: bool = True,
         memory: bool = True) -> Learner:  # fmt: skip
    """Two members, one transition per window: action 0, reward 0.5; `last` says how the window's transition ends."""
    network = RecurrentQNetwork(2, 3, encoder=(4,), hidden_size=4, head_size=None, dueling=False)
    population = VectorizedPopulation(network, [1, 2], num_envs=1, gamma=GAMMA, lr=lr, memory=memory)
    constant(population, population.online, ONLINE)
    replay = SequentialReplayBuffer(
        members=2, num_envs=1, capacity=20, obs_size=2, n_actions=3, hidden_size=4, seq_len=1, seeds=[1, 2]
    )
    zero, no = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool)
    for step in range(10):
        replay.add(
            torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(step)),
            no,
            None if legal is None else torch.tensor(legal).expand(2, 1, 3),
            zero,
            zero,
            torch.zeros(2, 1, dtype=torch.int64),
            torch.full((2, 1), REWARD),
            no | (last == "terminated"),
            ~no,
        )
    arguments = {} if td_unroll is None else {"td_unroll": td_unroll}
    spec = TDSpec(gamma=GAMMA, double_q=double_q, loss="mse")
    learner = Learner(
        population, replay, spec, batch_size=4, sync_every=sync_every, tau=tau, use_target=use_target, **arguments
    )
    constant(population, population.target_network, TARGET)
    population.sync_target("soft", 1e-12)  # packs the target anew, leaves it (to float32) where it is
    return learner


@pytest.mark.parametrize(
    ("case", "value"),
    [
        ({}, TARGET[1]),  # double Q: the online network likes action 1 best, the target values it
        ({"double_q": False}, TARGET[2]),
        ({"legal": (True, False, True)}, TARGET[2]),  # of the legal ones, online likes action 2 best
        ({"double_q": False, "legal": (True, True, False)}, TARGET[0]),
        ({"last": "terminated"}, 0.0),
        ({"use_target": False}, ONLINE[1]),
    ],
)
def test_the_loss_by_hand(case: dict[str, Any], value: float) -> None:
    learner = make(**case)
    metrics = learner.update()
    error = REWARD + GAMMA * value - ONLINE[0]
    assert torch.allclose(metrics["loss"], torch.tensor(error**2 / 2), rtol=1e-5)
    assert torch.allclose(metrics["td_error"], torch.tensor(abs(error)), rtol=1e-5)
    assert torch.allclose(metrics["q"], torch.tensor(ONLINE[0]), rtol=1e-5)
    # the gradient of the squared error reaches the bias of the action taken, and no target weight
    bias = learner.population.online["head.adv.bias"].grad
    assert bias is not None
    assert torch.allclose(bias, torch.tensor([-error, 0.0, 0.0]).expand(2, 3), rtol=1e-5)


def test_the_loss_follows_the_target_network() -> None:
    learner = make(lr=1e-12)
    losses = []
    for q in (TARGET, (0.0, 0.0, 0.0), ONLINE):
        constant(learner.population, learner.population.target_network, q)
        learner.population.sync_target("soft", 1e-12)
        losses.append(float(learner.update()["loss"][0]))
    expected = [(REWARD + GAMMA * v - ONLINE[0]) ** 2 / 2 for v in (TARGET[1], 0.0, ONLINE[1])]
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), rtol=1e-4)


def test_it_is_frozen_between_syncs_and_then_copied_exactly() -> None:
    learner = make(sync_every=4)
    population = learner.population
    frozen, packed = population.target_flat.clone(), population.packed_target
    for update in range(1, 9):
        learner.update()
        if update % 4:
            assert torch.equal(population.target_flat, frozen)
            assert population.packed_target is packed
            assert not torch.equal(population.online_flat, frozen)
        else:
            assert torch.equal(population.target_flat, population.online_flat)
            assert population.packed_target is not packed
            frozen, packed = population.target_flat.clone(), population.packed_target


@pytest.mark.parametrize("sync_every", [1, 3])
def test_soft_sync_is_exact(sync_every: int) -> None:
    learner = make(sync_every=sync_every, tau=0.25)
    population = learner.population
    for update in range(1, 7):
        before = population.target_flat.clone()
        learner.update()
        expected = before.double()
        if update % sync_every == 0:
            expected = 0.75 * expected + 0.25 * population.online_flat.double()
            assert not torch.equal(population.target_flat, before)
        assert (population.target_flat - expected).abs().max() < 1e-6  # observed 2e-7: one rounding


def test_q_learning_reaches_the_closed_form() -> None:
    """One action pays 0.5 for ever, the others are never legal: Q = 0.5 / (1 - 0.9) = 5."""
    options: dict[str, Any] = {"legal": (True, False, False), "lr": 3e-2, "memory": False}
    learner, frozen = make(sync_every=5, **options), make(sync_every=10**9, **options)
    constant(frozen.population, frozen.population.target_network, (2.0, 0.0, 0.0))
    frozen.population.sync_target("soft", 1e-12)
    for _ in range(400):
        q, control = learner.update()["q"], frozen.update()["q"]
    assert torch.allclose(q, torch.tensor(REWARD / (1 - GAMMA)), atol=0.05)
    assert torch.allclose(control, torch.tensor(REWARD + GAMMA * 2.0), atol=0.05), "control: a target never synced"
