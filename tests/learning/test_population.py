"""The population: acting with carried state, exploration, Adam and clipping per member, target sync, checkpoints."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from townlet import ops
from townlet.learning.members import per_member, require_finite
from townlet.learning.networks import RecurrentQNetwork
from townlet.learning.population import VectorizedPopulation

pytestmark = pytest.mark.usefixtures("one_thread")
OBS, A, H, E = 5, 4, 8, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(**sizes: Any) -> RecurrentQNetwork:
    return RecurrentQNetwork(OBS, A, encoder=(9,), hidden_size=H, head_size=7, **sizes)


def population(seeds: tuple[int, ...] = (1, 2, 3), num_envs: int = E, **arguments: Any) -> VectorizedPopulation:
    return VectorizedPopulation(network(), seeds, num_envs=num_envs, **arguments)


def none(members: int = 3, num_envs: int = E) -> Tensor:
    return torch.zeros(members, num_envs, dtype=torch.bool)


def loss(pop: VectorizedPopulation, x: Tensor) -> Tensor:
    """Something [P] that depends on every parameter."""
    w = pop.network.recurrent(pop.online)
    zero = torch.zeros(pop.members, x.shape[1], H)
    y, _, _ = ops.lstm_unroll(pop.network.encode(pop.online, x), zero, zero, w.w_ih, w.w_hh, w.bias, None)
    return (pop.network.q_values(pop.online, y.flatten(1, 2)) ** 2).sum((1, 2))


# -- acting --------------------------------------------------------------------------------------------------------


def test_act_is_one_lstm_step_and_the_greedy_action() -> None:
    pop = population()
    w = pop.network.recurrent(pop.online)
    h, c = torch.zeros(3, E, H), torch.zeros(3, E, H)
    for step in range(4):
        assert torch.allclose(pop.state[0], h, atol=1e-6)
        assert torch.allclose(pop.state[1], c, atol=1e-6)
        obs, reset = torch.randn(3, E, OBS), torch.rand(3, E) < 0.3 * (step > 0)
        action = pop.act(obs, reset)
        with torch.no_grad():
            h, c = ops.lstm_step(pop.network.encode(pop.online, obs), h, c, w.w_ih, w.w_hh, w.bias, reset)
            q = pop.network.q_values(pop.online, h)
        assert action.dtype == torch.int64
        assert torch.equal(action, q.argmax(-1))
    assert torch.allclose(pop.state[0], h, atol=1e-6)
    assert h.abs().min() > 0
    assert not pop.state[0].requires_grad


def test_a_reset_starts_from_zero_and_only_there() -> None:
    pop, fresh = population(), population()
    pop.act(torch.randn(3, E, OBS), none())
    reset = none()
    reset[1, 2] = True
    obs = torch.randn(3, E, OBS)
    pop.act(obs, reset)
    fresh.act(obs, none())
    same = torch.isclose(pop.state[0], fresh.state[0], atol=1e-6).all(-1)
    assert torch.equal(same, reset)


def test_without_memory_the_past_has_no_say() -> None:
    obs, other, now = torch.randn(3, 3, E, OBS).unbind(0)
    q_of = {}
    for memory in (False, True):
        seen = []
        for before in (obs, other):
            pop = population(memory=memory)
            pop.act(before, none())
            seen.append(pop.state[0].clone())
            pop.act(now, none())
            seen.append(pop.state[0].clone())
        q_of[memory] = seen
    assert all(not state.any() for state in q_of[False])
    assert not torch.allclose(q_of[True][1], q_of[True][3], atol=1e-3), "control: with memory it has"


def test_without_memory_actions_are_those_of_a_zero_state() -> None:
    pop, fresh = population(memory=False), population()
    for _ in range(5):
        obs = torch.randn(3, E, OBS)
        fresh.reset_state()
        assert torch.equal(pop.act(obs, none()), fresh.act(obs, none()))


def test_ties_go_to_the_lowest_legal_action() -> None:
    pop = population()
    with torch.no_grad():
        for name in ("head.adv.weight", "head.adv.bias"):
            pop.online[name].zero_()
    legal = torch.tensor([[True] * 4, [False, False, True, True], [False] * 4, [False, True, False, True]])
    pop4 = legal.expand(3, 4, A)
    action = VectorizedPopulation.act(pop, torch.randn(3, E, OBS), none(), torch.cat((pop4, pop4[:, :2]), 1))
    assert torch.equal(action, torch.tensor([0, 2, 0, 1, 0, 2]).expand(3, E))


def test_greedy_actions_are_legal_and_the_best_of_them() -> None:
    pop = population(num_envs=200)
    obs = torch.randn(3, 200, OBS)
    legal = torch.rand(3, 200, A) < 0.5
    legal[..., 0] |= ~legal.any(-1)
    free = copy.deepcopy(pop).act(obs, none(3, 200))
    action = pop.act(obs, none(3, 200), legal)
    assert legal.gather(-1, action.unsqueeze(-1)).all()
    was_legal = legal.gather(-1, free.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(action[was_legal], free[was_legal])
    assert not was_legal.all()


def test_exploration_is_uniform_over_the_legal_actions() -> None:
    n = 3000
    pop = population(num_envs=n)
    legal = torch.zeros(3, n, A, dtype=torch.bool)
    legal[..., [0, 2, 3]] = True
    action = pop.act(torch.randn(3, n, OBS), none(3, n), legal, epsilon=1.0)
    for p in range(3):
        counts = torch.bincount(action[p], minlength=A).float()
        assert counts[1] == 0
        chi_square = ((counts[[0, 2, 3]] - n / 3) ** 2 / (n / 3)).sum()
        assert chi_square < 13.8  # 0.1% of uniform draws exceed it


def test_epsilon_is_the_rate_of_exploration_per_member_and_environment() -> None:
    n = 4000
    obs = torch.randn(3, n, OBS)
    greedy = population(num_envs=n).act(obs, none(3, n))

    def rate(epsilon: Any) -> Tensor:
        return (population(num_envs=n).act(obs, none(3, n), None, epsilon) != greedy).float()

    expected = torch.tensor([0.0, 0.4, 0.8]) * (A - 1) / A  # a uniform draw hits the greedy action once in A
    assert torch.allclose(rate([0.0, 0.4, 0.8]).mean(1), expected, atol=0.03)
    assert not rate(0.0).any()
    half = torch.zeros(3, n)
    half[:, n // 2 :] = 1.0
    assert not rate(half)[:, : n // 2].any()
    assert torch.allclose(rate(half)[:, n // 2 :].mean(), torch.tensor((A - 1) / A), atol=0.03)


def test_draws_do_not_repeat_from_step_to_step() -> None:
    pop = population(num_envs=500)
    obs = torch.randn(3, 500, OBS)
    first, second = (pop.act(obs, none(3, 500) | True, None, 1.0) for _ in range(2))
    assert abs((first == second).float().mean() - 1 / A) < 0.05


def test_an_environments_draws_do_not_depend_on_how_many_there_are() -> None:
    few, many = population(num_envs=4), population(num_envs=50)
    obs = torch.randn(3, 50, OBS)
    for _ in range(3):
        a, b = few.act(obs[:, :4], none(3, 4), None, 0.5), many.act(obs, none(3, 50), None, 0.5)
        assert torch.equal(a, b[:, :4])


def test_acting_follows_every_way_of_writing_the_weights() -> None:
    pop, obs = population(), torch.randn(3, E, OBS)

    def state() -> Tensor:
        pop.reset_state()
        pop.act(obs, none())
        return pop.state[0].clone()

    seen = [state()]
    assert torch.equal(state(), seen[0])
    pop.online_flat += 0.1
    seen.append(state())
    with torch.no_grad():
        pop.online["lstm.w_ih"][1] *= 2
    seen.append(state())
    pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
    pop.adam_step()
    seen.append(state())
    other = population((7, 8, 9))
    pop.load_state_dict(other.state_dict())
    seen.append(state())
    for before, after in itertools.pairwise(seen):
        assert not torch.equal(before, after)
    other.act(obs, none())
    assert torch.equal(seen[-1], other.state[0])


def test_acting_errors_name_the_argument() -> None:
    pop = population()
    obs = torch.zeros(3, E, OBS)
    for arguments, message in (
        ((torch.zeros(3, 2, OBS), none()), r"obs has shape \[3, 2, 5\]"),
        ((obs, none()[:2]), r"reset has shape \[2, 6\]; expected \[P, E\] = \[3, 6\]"),
        ((obs, none(), none()), r"legal has shape \[3, 6\]; expected \[P, E, A\]"),
        ((obs, none(), None, 1.1), r"epsilon is 1.1 at \[0, 0\]; expected values in \[0, 1\]"),
        ((obs, none(), None, float("nan")), "epsilon is nan"),
        ((obs, none(), None, [0.1, 0.2]), r"epsilon has shape \[2\]"),
    ):
        before = pop.state[0].clone()
        with pytest.raises(ValueError, match=message):
            pop.act(*arguments)  # type: ignore[arg-type]
        assert torch.equal(pop.state[0], before)
        assert pop.act_count == 0


# -- learning ------------------------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_views_of_the_flat_buffers() -> None:
    pop = population()
    for p in range(3):
        pop.online_flat[p] += p + 1
    initial = pop.network.init(pop.seeds)
    for name, leaf in pop.online.items():
        assert leaf.is_leaf
        assert leaf.requires_grad
        for p in range(3):
            assert torch.allclose(leaf[p], initial[name][p] + p + 1)
    pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
    squares = sum((leaf.grad**2).sum() for leaf in pop.online.values())  # type: ignore[operator]
    assert torch.isclose((pop.grad_flat**2).sum(), torch.as_tensor(squares), rtol=1e-5)
    pop.backward(pop.online["head.adv.bias"].sum(1))
    assert pop.grad_flat.sum() == 3 * A
    assert not pop.online["lstm.w_hh"].grad.any()


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e9])
def test_clipping_and_adam_equal_torchs_for_each_member(clip_norm: float | None) -> None:
    rates = [1e-2, 1e-3, 3e-2]
    pop = population(lr=rates, clip_norm=clip_norm, adam_eps=1e-8)
    twins = []
    for p, rate in enumerate(rates):
        params = {name: v[p].detach().clone().requires_grad_() for name, v in pop.online.items()}
        twins.append((params, torch.optim.Adam(params.values(), lr=rate, eps=1e-8)))
    start = pop.online_flat.clone()
    for _ in range(5):
        pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
        for p, (params, optimiser) in enumerate(twins):
            for name, v in params.items():
                v.grad = pop.online[name].grad[p].clone()  # type: ignore[index]
            norm = torch.nn.utils.clip_grad_norm_(params.values(), clip_norm or float("inf"))
            optimiser.step()
            twins[p] = (params, optimiser)
            if p == 0:
                norms = []
            norms.append(norm)
        assert torch.allclose(pop.adam_step(), torch.stack(norms), rtol=1e-5)
        for p, (params, _) in enumerate(twins):
            for name, v in params.items():
                assert torch.allclose(pop.online[name][p], v, atol=2e-6)  # observed 3e-7
    assert not torch.allclose(pop.online_flat, start, atol=1e-3)


def test_members_together_follow_members_apart() -> None:
    together = population(lr=[1e-2, 2e-3, 5e-3])
    apart = [population((seed,), lr=rate) for seed, rate in zip((1, 2, 3), (1e-2, 2e-3, 5e-3), strict=True)]
    for _ in range(6):
        obs = torch.randn(3, E, OBS)
        actions = together.act(obs, none(), None, 0.3)
        x = torch.randn(3, 2, 3, OBS)
        together.backward(loss(together, x))
        together.adam_step()
        together.sync_target("soft", 0.3)
        for p, pop in enumerate(apart):
            assert torch.equal(pop.act(obs[p : p + 1], none(1), None, 0.3)[0], actions[p])
            pop.backward(loss(pop, x[p : p + 1]))
            pop.adam_step()
            pop.sync_target("soft", 0.3)
            for mine, theirs in ((pop.online_flat, together.online_flat), (pop.target_flat, together.target_flat)):
                assert torch.allclose(mine[0], theirs[p], atol=1e-5)  # observed 1e-6
    assert not torch.allclose(together.online_flat[0], together.online_flat[1], atol=1e-2), "control"


@pytest.mark.parametrize("deferred", [False, True])
def test_the_average_trails_the_weights_by_its_decay(deferred: bool) -> None:
    pop = population(ema_decay=0.3, deferred=deferred)
    want = pop.online_flat.double()
    generator = torch.Generator().manual_seed(3)
    for kept in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3):
        pop.backward(loss(pop, torch.randn(3, 2, 3, OBS, generator=generator)))
        pop.adam_step()
        want = kept * want + (1 - kept) * pop.online_flat.double()
    for name, view in pop._views(want).items():
        assert torch.allclose(pop.averaged[name].double(), view, atol=1e-7)
    assert pop.average_flat is not None
    assert not torch.allclose(pop.average_flat, pop.online_flat, atol=1e-4), "control"
    without = population()
    assert without.averaged is without.online


@pytest.mark.parametrize("bad", [False, True])
def test_a_step_that_is_not_made_leaves_the_average_alone(bad: bool) -> None:
    pop = population(ema_decay=0.5, deferred=True)
    assert pop.average_flat is not None
    pop.average_flat.zero_()  # far from the weights
    pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
    good = pop.finite("thing", torch.tensor([[1.0], [float("nan") if bad else 1.0], [1.0]]))
    pop.adam_step(good)
    assert (pop.average_flat == 0).all() == bad


def test_one_members_trouble_stays_its_own_until_it_is_reported() -> None:
    pop = population()
    pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
    pop.grad_flat[1, 5] = float("nan")
    before = pop.state_dict()
    with pytest.raises(ValueError, match="gradient of member 1 is not finite"):
        pop.adam_step()
    after = pop.state_dict()
    for key in ("online", "adam_m", "adam_v"):
        for name in before[key]:
            assert torch.equal(before[key][name], after[key][name])
    assert after["adam_steps"] == 0
    with pytest.raises(ValueError, match="thing of member 0, 2 is"):
        require_finite("thing", torch.tensor([[float("inf"), 0], [0, 0], [0, float("nan")]]))


# -- target network ------------------------------------------------------------------------------------------------


def packed_weights(pop: VectorizedPopulation) -> Tensor:
    """What the operator sees of the target: the Q-values' dependence on it, through a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 2, 4, 9, generator=generator)
    zero, yes = torch.zeros(3, 2, H), torch.ones(3, 2, 3, dtype=torch.bool)
    reset = torch.zeros(3, 2, 4, dtype=torch.bool)
    reward, action = torch.zeros(3, 2, 3), torch.zeros(3, 2, 3, dtype=torch.int64)
    batch = ops.SequenceBatch(features, features, zero, zero, action, reward, ~yes, reset, yes, torch.ones(3, 2))
    fixed = population().network.recurrent(population().online)
    return ops.td_unroll(fixed, pop.packed_target, batch, ops.TDSpec(gamma=0.9)).td_error


def test_hard_sync_copies_bit_for_bit_and_only_then() -> None:
    pop = population()
    assert torch.equal(pop.target_flat, pop.online_flat)
    before, seen = pop.target_flat.clone(), packed_weights(pop)
    pop.backward(loss(pop, torch.randn(3, 2, 3, OBS)))
    pop.adam_step()
    pop.act(torch.randn(3, E, OBS), none())
    assert torch.equal(pop.target_flat, before)
    assert torch.equal(packed_weights(pop), seen)
    assert not torch.equal(pop.target_flat, pop.online_flat)
    pop.sync_target("hard")
    assert torch.equal(pop.target_flat, pop.online_flat)
    assert not torch.equal(packed_weights(pop), seen)
    for name, v in pop.target_network.items():
        assert torch.equal(v, pop.online[name])
        assert not v.requires_grad
    pop.online_flat += 1  # a copy, not an alias
    assert not torch.equal(pop.target_flat, pop.online_flat)


@pytest.mark.parametrize("tau", [0.01, 0.3, 0.9])
def test_soft_sync_moves_by_tau(tau: float) -> None:
    pop = population()
    pop.online_flat += torch.randn(pop.online_flat.shape)
    target, online, seen = pop.target_flat.clone(), pop.online_flat.clone(), packed_weights(pop)
    pop.sync_target("soft", tau)
    expected = (1 - tau) * target.double() + tau * online.double()
    assert (pop.target_flat - expected).abs().max() < 1e-6  # observed 2e-7: one rounding
    assert torch.equal(pop.online_flat, online)
    assert not torch.equal(packed_weights(pop), seen)


def test_soft_sync_with_tau_one_is_hard() -> None:
    pop = population()
    pop.online_flat += torch.randn(pop.online_flat.shape)
    pop.sync_target("soft", 1.0)
    assert torch.equal(pop.target_flat, pop.online_flat)


def test_sync_errors() -> None:
    pop = population()
    with pytest.raises(ValueError, match="mode is 'medium'"):
        pop.sync_target("medium")
    for tau in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="tau is"):
            pop.sync_target("soft", tau)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def advance(pop: VectorizedPopulation, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pop.act(torch.randn(3, E, OBS, generator=generator), none(), None, 0.5)
        pop.backward(loss(pop, torch.randn(3, 2, 3, OBS, generator=generator)))
        pop.adam_step()
    pop.sync_target("soft", 0.5)


def flatten(state: dict[str, Any]) -> list[Any]:
    return [w for v in state.values() for w in (flatten(v) if isinstance(v, dict) else [v])]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    pairs = zip(flatten(a), flatten(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_restored_population_goes_on_bit_for_bit(ema_decay: float) -> None:
    pop = population(ema_decay=ema_decay)
    advance(pop, 3, seed=1)
    saved = pop.state_dict()
    kept = copy.deepcopy(saved)
    advance(pop, 3, seed=2)
    assert same(saved, kept), "the saved state moved with the population"
    other = VectorizedPopulation(network(), (7, 8, 9), num_envs=E, ema_decay=ema_decay)
    other.load_state_dict(saved)
    assert torch.equal(packed_weights(other), packed_weights(other))
    advance(other, 3, seed=2)
    assert same(other.state_dict(), pop.state_dict())
    assert torch.equal(packed_weights(other), packed_weights(pop))
    for name in saved:  # control: every entry matters
        broken = copy.deepcopy(saved)
        value = broken[name]
        broken[name] = (
            {k: v + 1 for k, v in value.items()}
            if isinstance(value, dict)
            else [5, 6, 7]
            if name == "seeds"
            else value + (0.5 if isinstance(value, Tensor) else 1)
        )
        other.load_state_dict(broken)
        advance(other, 3, seed=2)
        assert not same(other.state_dict(), pop.state_dict()), name


def test_a_foreign_state_is_refused_and_changes_nothing() -> None:
    pop = population()
    good = pop.state_dict()
    wrong_shape = copy.deepcopy(good)
    wrong_shape["online"]["lstm.w_hh"] = torch.zeros(3, 4, 4)
    missing = copy.deepcopy(good)
    del missing["target"]["head.adv.bias"]
    fewer = copy.deepcopy(good)
    fewer["h"] = fewer["h"][:, :2]
    seeds = copy.deepcopy(good)
    seeds["seeds"] = [1]
    for state, message in (
        ({**good, "extra": 1}, r"state holds \[.*'extra'.*\]; expected \['act_count'"),
        ({k: v for k, v in good.items() if k != "c"}, r"state holds .*; expected \[.*'c', "),
        (wrong_shape, r"online.lstm.w_hh has shape \[3, 4, 4\]; expected \[3, 32, 8\]"),
        (missing, "target.head.adv.bias has shape None"),
        (fewer, r"h has shape \[3, 2, 8\]"),
        (seeds, "1 seeds; expected one per member, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            pop.load_state_dict(state)
        assert same(pop.state_dict(), good)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": [0.9, 0.8]}, r"gamma has shape \[2\]; expected one value or one per member, \[3\]"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": [1e-3, 1e-3, float("inf")]}, "lr is"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"seeds": ()}, "seeds is empty"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        population(**arguments)


def test_per_member_values() -> None:
    assert torch.equal(per_member("x", 0.5, 3), torch.full((3,), 0.5))
    assert torch.equal(per_member("x", [1, 2, 3], 3), torch.tensor([1.0, 2.0, 3.0]))
