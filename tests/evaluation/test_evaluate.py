"""Greedy evaluation: one whole episode per environment, the same episodes for everybody, nothing else touched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import worlds as _worlds  # noqa: F401  registers the Clocks

from townlet.envs.make import make_worlds
from townlet.evaluate import (
    GreedyActor,
    evaluate,
    evaluate_policy,
    evaluation_seeds,
    mean_interval,
    play,
    training_seeds,
)
from townlet.learning.networks import RecurrentQNetwork
from townlet.support.ids import TOWN_ID


def clocks(n):
    return make_worlds("Clock-v0", n)


def perfect(adapter):
    """Plays tick % 2, which it reads off the observation; after its episode it would earn more."""
    adapter.reset([0] * adapter.num_envs)
    seen = {}

    def act(obs, legal, reset):
        seen["obs"] = obs
        return obs[:, 0].astype(int) % 2

    return act


def test_each_environment_counts_its_first_episode_whole():
    result = evaluate_policy(perfect, clocks, 200, 3)
    adapter = clocks(200)
    lengths = adapter.reset(evaluation_seeds(3, 200))[0][:, 1]
    assert np.array_equal(result.lengths[0], lengths)
    assert np.array_equal(result.returns[0], lengths)
    assert not result.cut.any()
    assert result.survival is None
    assert result.score_name == "return"
    # Had whatever ended first been counted, short episodes would be over-represented; the true mean of 3..7 is 5.
    assert abs(result.returns.mean() - 5.0) < 0.3


def test_an_episode_that_does_not_end_is_cut_and_marked():
    result = evaluate_policy(perfect, clocks, 50, 3, max_steps=4)
    assert np.array_equal(result.lengths[0], np.minimum(4, evaluate_policy(perfect, clocks, 50, 3).lengths[0]))
    assert np.array_equal(result.cut[0], evaluate_policy(perfect, clocks, 50, 3).lengths[0] > 4)


def test_members_play_the_same_episodes_and_only_weights_matter():
    network = RecurrentQNetwork(163, 6, encoder=(8,), hidden_size=8, head_size=8)
    params = network.init([4, 5, 4])

    def hamlets(n):
        return make_worlds(TOWN_ID, n, level="hamlet", depletion=1.5)

    result = evaluate(network, params, hamlets, 12, 0)
    assert result.survival.shape == (3, 12)
    assert result.score_name == "survival"
    assert np.array_equal(result.survival[0], result.survival[2])
    assert not np.array_equal(result.survival[0], result.survival[1])
    alone = evaluate(network, {k: v[1:2] for k, v in params.items()}, hamlets, 12, 0)
    assert np.array_equal(alone.survival[0], result.survival[1])
    assert np.array_equal(result.returns, result.survival)  # the default reward is one per tick survived


def test_without_memory_every_step_is_a_first_step():
    network = RecurrentQNetwork(2, 2, encoder=(8,), hidden_size=8, head_size=8)
    params = network.init([1, 2])
    first, second = (np.random.default_rng(s).random((6, 2), dtype=np.float32) for s in (0, 1))
    new, going_on = np.ones(6, bool), np.zeros(6, bool)
    fresh = GreedyActor(network, params, 3).step(second, None, new).q
    for memory, equal in ((False, True), (True, False)):
        actor = GreedyActor(network, params, 3, memory=memory)
        actor.step(first, None, new)
        assert torch.equal(actor.step(second, None, going_on).q, fresh) is equal
    actor = GreedyActor(network, params, 3)
    actor.step(first, None, new)
    half = np.array([True, False] * 3)
    mixed, carried = actor.step(second, None, half).q.reshape(6, 2), GreedyActor(network, params, 3)
    carried.step(first, None, new)
    kept = carried.step(second, None, going_on).q.reshape(6, 2)
    assert torch.equal(mixed[half], fresh.reshape(6, 2)[half])
    assert torch.equal(mixed[~half], kept[~half])


def test_a_state_is_zeroed_at_the_first_step_of_an_episode_only():
    ticks, flags = [], []

    def act(obs, legal, reset):
        ticks.append(obs[:, 0].copy())
        flags.append(reset.copy())
        return np.zeros(len(obs), int)

    lengths = play(act, clocks(6), [1, 2, 3, 4, 5, 6]).lengths[0]
    assert np.array_equal(flags, np.array(ticks) == 0)  # those that are over begin again, and are told
    assert len(set(lengths)) > 1
    assert np.array(flags)[1:].any()


def test_seed_streams_do_not_meet():
    everything = [
        *evaluation_seeds(0, 500), *evaluation_seeds(0, 500, "test"), *evaluation_seeds(1, 500),
        *training_seeds(0, 500), *training_seeds(1, 500), *training_seeds(0, 500, 1), *training_seeds(0, 500, 2),
    ]  # fmt: skip
    assert len(set(everything)) == len(everything)
    assert all(0 <= s < 2**63 for s in everything)
    assert training_seeds(7, 3) == training_seeds(7, 5)[:3]
    assert evaluation_seeds(2, 4) == evaluation_seeds(2, 9)[:4]


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [([1.0, 2.0, 3.0], 2.0, 4.303 / math.sqrt(3)), ([0.0, 2.0], 1.0, 12.706), ([5.0] * 40, 5.0, 0.0)],
)
def test_intervals_by_hand(values, mean, half):
    assert mean_interval(np.array(values)) == pytest.approx((mean, half))


def test_one_value_has_no_interval_and_many_use_the_normal():
    assert math.isnan(mean_interval(np.array([3.0]))[1])
    values = np.arange(100.0)
    assert mean_interval(values)[1] == pytest.approx(1.96 * values.std(ddof=1) / 10)
