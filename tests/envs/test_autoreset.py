"""All three autoreset modes store one and the same stream, computed here by hand, and the same values come from it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from trees import same
from worlds import SavableClock, clock

from townlet import ops, reference
from townlet.envs.adapter import VectorAdapter
from townlet.evaluate import evaluate_policy
from townlet.learning.replay import SequentialReplayBuffer
from townlet.report import Agent
from townlet.serve.play import _open
from townlet.training.trainer import Trainer
from townlet.watch import episode as watch

MODES = list(AutoresetMode)
LENGTHS = [((2, "terminated"), (3, "truncated")), ((3, "truncated"), (1, "terminated"), (1, "truncated"))]
"""Episodes of environments 0 and 1, over and over."""


class Stair(gymnasium.Env):
    """Observation 10 * episode + tick, reward 10 + tick, action = tick % 2 legal only; ends as `lengths` says."""

    observation_space = Box(0, 1000, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, lengths):
        self.lengths, self.episode, self.tick = lengths, 0, 0

    def _seen(self):
        legal = np.array([self.tick % 2 == 0, self.tick % 2 == 1])
        return np.array([10 * self.episode + self.tick], np.float32), {"action_mask": legal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.tick = self.episode + 1, 0
        return self._seen()

    def step(self, action):
        assert action == self.tick % 2
        self.tick += 1
        length, kind = self.lengths[(self.episode - 1) % len(self.lengths)]
        over = self.tick == length
        obs, info = self._seen()
        return obs, 10.0 + self.tick, over and kind == "terminated", over and kind == "truncated", info


# obs, reset, mask, action, reward, terminated: what each stream must hold, whatever the mode
BY_HAND = [
    [
        (10, 1, 1, 0, 11, 0), (11, 0, 1, 1, 12, 1), (12, 0, 0, 0, 0, 0),
        (20, 1, 1, 0, 11, 0), (21, 0, 1, 1, 12, 0), (22, 0, 1, 0, 13, 0), (23, 0, 0, 0, 0, 0),
        (30, 1, 1, 0, 11, 0), (31, 0, 1, 1, 12, 1), (32, 0, 0, 0, 0, 0),
    ],
    [
        (10, 1, 1, 0, 11, 0), (11, 0, 1, 1, 12, 0), (12, 0, 1, 0, 13, 0), (13, 0, 0, 0, 0, 0),
        (20, 1, 1, 0, 11, 1), (21, 0, 0, 0, 0, 0),
        (30, 1, 1, 0, 11, 0), (31, 0, 0, 0, 0, 0),
        (40, 1, 1, 0, 11, 0), (41, 0, 1, 1, 12, 0),
    ],
]  # fmt: skip
ROWS = 10


def stairs(mode):
    return lambda env_id, n, **args: VectorAdapter(
        SyncVectorEnv([lambda own=own: Stair(own) for own in LENGTHS[:n]], autoreset_mode=mode), "stair"
    )


def trained(mode, **changes):
    """A run whose replay holds the streams; its only window is a stream's first 10 rows."""
    values = {"members": 1, "num_envs": 2, "seq_len": ROWS - 1, "burn_in": 0, "stride": ROWS - 1, "encoder": ()}
    run = Trainer(clock(**{**values, "learning_starts": 10**3, "capacity": 200, **changes}), make=stairs(mode))
    while run.env_steps < 2 * ROWS:
        run.act_step()
    return run


def stored(run, name):
    """[2, 10, ...]: the first rows of both streams."""
    return run.replay._data[name].view(2, run.replay.ring, -1)[:, :ROWS]


def check_stream(run):
    columns = [stored(run, name)[..., 0] for name in ("obs", "reset", "mask", "action", "reward", "terminated")]
    got = torch.stack([c.double() for c in columns], dim=-1)
    expected = torch.tensor(BY_HAND, dtype=torch.float64)
    valid = expected[..., 2:3].bool() | torch.tensor([True, True, True, False, False, True])  # nobody acts when masked
    assert torch.equal(torch.where(valid, got, 0), torch.where(valid, expected, 0))


@pytest.mark.parametrize("mode", MODES)
def test_the_stored_stream_is_the_one_computed_by_hand(mode):
    check_stream(trained(mode))


def lose_final_observations(monkeypatch):
    monkeypatch.setattr(SequentialReplayBuffer, "add_final", lambda *a: None)


def mistake_final_observations(monkeypatch):
    """The next episode's first observation stands for the final one, as `obs` of SAME_STEP worlds has it."""
    add = SequentialReplayBuffer.add_final
    monkeypatch.setattr(SequentialReplayBuffer, "add_final", lambda self, e, obs, *a: add(self, e, obs * 0 + 20, *a))


def forget_that_episodes_begin(monkeypatch):
    step = VectorAdapter.step
    monkeypatch.setattr(VectorAdapter, "step", lambda self, a: (s := step(self, a))._replace(first=s.first & False))


SPOILED = [lose_final_observations, mistake_final_observations, forget_that_episodes_begin]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_stream_without_its_final_observations_is_noticed(monkeypatch, mode, spoil):
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check_stream(trained(mode))


def window(run, scale=1.0):
    """The first 10 rows of both streams, as the learner gets them."""
    sample = run.replay.windows_at(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert sample.start.tolist() == [[0, 0]]
    names = ("h0", "c0", "action", "reward", "terminated", "reset", "mask", "weight", "legal")
    return ops.SequenceBatch(scale * sample.obs, scale * sample.obs, *(getattr(sample, name) for name in names))


def returns(run):
    """Two-step returns with gamma 0.5, where an observation's value is the observation; 0 where not valid."""
    batch = window(run)
    valid, gamma = reference.valid_transitions(batch), torch.full((1, 1, 1), 0.5)
    value = batch.features_online[..., 0]
    return torch.where(valid, reference.n_step_return(value, batch.reward, batch.terminated, valid, gamma, 2), 0.0)[0]


def check_returns(run):
    """By hand. A termination has no successor's value; the step before a truncation takes its final observation's."""
    expected = [
        [11 + 6, 12, 0, 11 + 6 + 22 / 4, 12 + 6.5 + 23 / 4, 13 + 23 / 2, 0, 11 + 6, 12],
        [11 + 6 + 12 / 4, 12 + 6.5 + 13 / 4, 13 + 13 / 2, 0, 11, 0, 11 + 31 / 2, 0, 11 + 41 / 2],
    ]
    assert torch.equal(returns(run), torch.tensor(expected))


@pytest.mark.parametrize("mode", MODES)
def test_a_truncated_episode_takes_its_value_from_its_final_observation(mode):
    check_returns(trained(mode))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("spoil", SPOILED)
def test_returns_without_the_final_observation_are_noticed(monkeypatch, mode, spoil):
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check_returns(trained(mode))


def test_the_operator_sees_no_difference_between_the_modes():
    def errors(mode):
        run = trained(mode)
        network = run.network.recurrent(run.population.online)
        return ops.td_unroll(network, network, window(run, 0.01), ops.TDSpec(gamma=0.9, n_step=3)).td_error

    first, *others = map(errors, MODES)
    assert (first != 0).sum() == sum(row[2] for stream in BY_HAND for row in stream[:-1])
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("mode", MODES)
def test_legal_actions_belong_to_the_observation_they_are_stored_with(mode):
    run = trained(mode)
    odd = stored(run, "obs")[..., 0].long() % 10 % 2
    assert torch.equal(stored(run, "legal"), torch.stack((odd == 0, odd == 1), dim=-1))


@pytest.mark.parametrize("mode", MODES)
def test_last_action_and_reward_are_part_of_the_observation(mode):
    """One-hot action and raw reward of the step that led there, in final observations too; zeros where one begins."""
    run = trained(mode, last_action=True, last_reward=True, reward_scale=7.0)
    assert [(p.path[-1:], p.start, p.size) for p in run.rollout.worlds.layout] == [
        ((), 0, 1), (("last action",), 1, 2), (("last reward",), 3, 1),
    ]  # fmt: skip
    expected = torch.zeros(2, ROWS, 4)
    for e, stream in enumerate(BY_HAND):
        for t, (obs, reset, *_) in enumerate(stream):
            expected[e, t, 0] = obs
            if not reset:
                expected[e, t, 1 + stream[t - 1][3]] = 1
                expected[e, t, 3] = stream[t - 1][4]
    assert torch.equal(stored(run, "obs"), expected)
    alone = trained(mode, last_reward=True)
    assert torch.equal(stored(alone, "obs"), expected[..., [0, 3]])


# ---- the rest of the trainer ----------------------------------------------------------------------------------------


def clocks(mode):
    return lambda env_id, n, **args: VectorAdapter(SyncVectorEnv([SavableClock] * n, autoreset_mode=mode), "clock")


@pytest.mark.parametrize("mode", MODES)
def test_statistics_count_each_episode_once(mode):
    run = Trainer(clock(epsilon_start=0.0, epsilon_end=0.0, replay_ratio=0.0), make=clocks(mode))
    run.population.act = lambda obs, reset, legal, epsilon: (obs[..., 0] % 2).long()  # perfect: return = length
    step, lengths = run.rollout.worlds.step, []

    def spy(action):
        out = step(action)
        lengths.extend((out.obs[out.over] if out.final_obs is None else out.final_obs)[:, 1])  # as the world says
        return out

    run.rollout.worlds.step = spy
    while run.env_steps < 160:
        run.act_step()
    means = run.rollout.episodes.drain()
    assert np.array_equal(means["train_return"], means["train_length"])
    assert means["episodes"].sum() == len(lengths) > 20
    assert (means["train_length"] * means["episodes"]).sum() == sum(lengths)


def test_evaluation_does_not_depend_on_the_mode():
    def policy(adapter):
        return lambda obs, legal, reset: (obs[:, 0] > 1).astype(int)

    results = [evaluate_policy(policy, lambda n, mode=mode: clocks(mode)("", n), 50, 3) for mode in MODES]
    assert all(np.array_equal(results[0].returns, r.returns) for r in results)
    assert all(np.array_equal(results[0].lengths, r.lengths) for r in results)
    assert len(set(results[0].returns[0])) > 1


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_run_goes_on_bit_for_bit_in_every_mode(tmp_path, mode):
    changes = {"last_action": True, "last_reward": True}
    whole = Trainer(clock(total_steps=240, **changes), make=clocks(mode))
    whole.train()
    Trainer(clock(total_steps=120, run_dir=str(tmp_path / "run"), **changes), make=clocks(mode)).train()
    second = Trainer.resume(tmp_path / "run", {"total_steps": 240}, make=clocks(mode))
    second.train()
    trees = whole.state_dict(), second.state_dict()
    assert whole.updates > 10
    assert same(*({k: v for k, v in tree.items() if k != "config"} for tree in trees))


def test_whoever_reads_a_run_opens_the_worlds_it_was_trained_in(tmp_path):
    """With the last action and reward among the inputs; another row would not fit the network."""
    run = Trainer(clock(total_steps=80, last_action=True, last_reward=True, run_dir=str(tmp_path / "run")))
    run.train()
    agent = Agent.load(tmp_path / "run")
    assert agent.network.obs_size == 2 + 2 + 1
    assert np.array_equal(agent.evaluate(5, 1).returns, Agent.of(run).evaluate(5, 1).returns)
    assert len(list(watch.episode(agent, "ansi", seed=1))) > 3
    worlds, pictures = _open(agent)
    assert pictures
    assert worlds.obs_size == 5


# ---- what a SAME_STEP world must tell -------------------------------------------------------------------------------


class Nested(Stair):
    observation_space = Dict({"tick": Discrete(10), "at": Stair.observation_space})

    def _seen(self):
        obs, info = super()._seen()
        return {"at": obs, "tick": self.tick}, {**info, "survival_time": 100 * self.episode + self.tick}


def test_final_observations_of_any_space_and_their_survival():
    env = SyncVectorEnv([lambda own=own: Nested(own) for own in LENGTHS], autoreset_mode=AutoresetMode.SAME_STEP)
    adapter = VectorAdapter(env)
    adapter.reset([1, 2])
    tick, seen = np.zeros(2, int), []
    for _ in range(4):
        step = adapter.step(tick % 2)
        tick = np.where(step.over, 0, tick + 1)
        finals = [] if step.final_obs is None else step.final_obs
        seen.append(([(row[0], row[1:].argmax()) for row in finals], step.survival.tolist()))
    assert seen == [
        ([], [101, 101]),
        ([(12, 2)], [102, 102]),
        ([(13, 3)], [201, 103]),
        ([(21, 1)], [202, 201]),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_obs": None}, r"info\['final_obs'\] and .* do not hold .*environments \[0\] \(TypeError"),
        ({"final_obs": [np.zeros(2)]}, r"info\['final_obs'\] and .*environments \[0\] \(ValueError"),
        ({"final_obs": [np.full(1, np.nan)]}, "final observation of environment 0 is not finite"),
        ({"final_info": {"action_mask": np.ones((1, 3))}}, r".*info\['final_info'\] do not hold .* \(ValueError"),
    ],
)
def test_a_same_step_world_without_proper_final_observations_is_refused(changes, message):
    class Silent(SyncVectorEnv):
        def step(self, actions):
            *out, info = super().step(actions)
            return *out, {**info, **changes}

    env = Silent([lambda: Stair(LENGTHS[0])], autoreset_mode=AutoresetMode.SAME_STEP)
    adapter = VectorAdapter(env, "silent")
    adapter.reset([1])
    adapter.step(np.array([0]))
    with pytest.raises(ValueError, match=r"^silent: at step 2: " + message):
        adapter.step(np.array([1]))
