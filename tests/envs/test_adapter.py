"""Every world looks alike through the adapter, and what is not supported is refused by name."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from worlds import clock

from townlet.envs.adapter import VectorAdapter
from townlet.envs.make import make_worlds
from townlet.support.ids import TOWN_ID
from townlet.training.trainer import Trainer


class Odd(gymnasium.Env):
    """Spaces to choose; observation fixed; the action received is the reward."""

    def __init__(self, space, value, actions):
        self.observation_space, self.value, self.action_space = space, value, actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action):
        return self.value, float(action), False, False, {}


def vector(space, value, actions=None, mode=AutoresetMode.NEXT_STEP, n=2):
    actions = Discrete(3) if actions is None else actions
    env = SyncVectorEnv([lambda: Odd(space, value, actions)] * n)
    env.metadata["autoreset_mode"] = mode
    return env


def test_box_is_flattened_and_cast():
    value = np.arange(6, dtype=np.int16).reshape(2, 3)
    adapter = VectorAdapter(vector(Box(-10, 10, (2, 3), np.int16), value))
    obs, legal = adapter.reset([1, 2])
    assert adapter.obs_size == 6
    assert obs.dtype == np.float32
    assert legal is None
    assert np.array_equal(obs, np.tile(np.arange(6.0), (2, 1)))


def test_discrete_is_one_hot_from_its_start():
    adapter = VectorAdapter(vector(Discrete(4, start=5), np.int64(7)))
    assert np.array_equal(adapter.reset([1, 2])[0], np.tile([0.0, 0.0, 1.0, 0.0], (2, 1)))


def test_actions_begin_at_the_space_start():
    adapter = VectorAdapter(vector(Discrete(2), np.int64(0), Discrete(3, start=4)))
    adapter.reset([1, 2])
    assert adapter.n_actions == 3
    assert adapter.step(np.array([0, 2])).reward.tolist() == [4.0, 6.0]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            lambda: vector(Box(0, 1, (2,)), np.zeros(2, np.float32), Box(-1, 1, (1,))),
            r"continuous action space Box.*; expected Discrete, MultiDiscrete or MultiBinary",
        ),
        (
            lambda: vector(Discrete(2), np.int64(0), Text(3)),
            r"action space Text\(.*\) is not supported; expected Discrete",
        ),
        (
            lambda: vector(Discrete(2), np.int64(0), mode=None),
            r"autoreset_mode'\] is None; expected .*: NEXT_STEP, SAME",
        ),
    ],
)
def test_what_is_not_supported_is_named(env, message):
    with pytest.raises(ValueError, match=f"^a-world: .*{message}"):
        VectorAdapter(env(), "a-world")


def test_text_is_left_out_and_a_run_says_so():
    space = Dict({"at": Box(0, 1, (2,)), "mission": Text(9)})
    value, said = {"at": np.ones(2, np.float32), "mission": "go"}, []
    Trainer(clock(), make=lambda env_id, n, **a: VectorAdapter(vector(space, value, n=n), "w"), say=said.append)
    assert "w: observation['mission'] is text and is left out" in said
    said.clear()
    Trainer(clock(), say=said.append)
    assert not [line for line in said if "left out" in line]


@pytest.mark.parametrize(
    ("env_id", "obs_size", "n_actions"),
    [("Blackjack-v1", 32 + 11 + 2, 2), ("popgym-AutoencodeEasy-v0", 2 + 4, 4), ("popgym-MineSweeperEasy-v0", 3, 16)],
)
def test_worlds_of_other_spaces_train(env_id, obs_size, n_actions):
    """Tuples of Discrete in, or combined actions out; with the last action and reward."""
    run = Trainer(clock(env=env_id, last_action=True, last_reward=True))
    run.train()
    assert (run.rollout.worlds.obs_size, run.rollout.worlds.n_actions) == (obs_size + n_actions + 1, n_actions)
    assert run.updates == 15
    assert np.isfinite(run.evaluate().returns).all()


def test_combined_actions_are_numbered_through():
    taken = []

    class Levers(Odd):
        def step(self, action):
            taken.append(np.asarray(action).tolist())
            return self.value, 0.0, False, False, {}

    for space, n, number, action in (
        (MultiDiscrete([3, 2]), 6, 3, [1, 1]),
        (MultiDiscrete([3, 2], start=[5, 7]), 6, 4, [7, 7]),
        (MultiBinary(3), 8, 5, [1, 0, 1]),
    ):
        env = SyncVectorEnv([lambda space=space: Levers(Discrete(2), np.int64(0), space)])
        adapter = VectorAdapter(env)
        adapter.reset([1])
        adapter.step(np.array([number]))
        assert adapter.n_actions == n
        assert taken.pop() == action


def test_a_number_that_is_not_finite_names_world_environment_and_step():
    for fault, what in (("obs", "observation"), ("reward", "reward")):
        adapter = make_worlds("Clock-v0", 2, fault_at=3, fault=fault)
        adapter.reset([1, 2])
        for _ in range(2):
            adapter.step(np.zeros(2, int))
        with pytest.raises(ValueError, match=f"Clock-v0: {what} of environment 0 at step 3 is not finite"):
            adapter.step(np.zeros(2, int))


def test_worlds_that_cannot_be_made_are_named():
    with pytest.raises(ValueError, match=r"Nope-v0: cannot be made with no arguments: .*Nope"):
        make_worlds("Nope-v0", 1)
    with pytest.raises(ValueError, match=r"Clock-v0: cannot be made with \{'speed': 3\}"):
        make_worlds("Clock-v0", 1, speed=3)
    with pytest.raises(ValueError, match=r"SavableClok-v0: .*Near: SavableClock-v0"):
        make_worlds("SavableClok-v0", 1)
    with pytest.raises(ValueError, match=r"needs the package 'no_such_package'.*pip install no_such_package"):
        make_worlds("no_such_package:X-v0", 1)
    with pytest.raises(ValueError, match=f"{TOWN_ID}: .*speed"):
        make_worlds(TOWN_ID, 1, speed=3)
    with pytest.raises(ValueError, match=r"seeds has length 1; expected num_envs = 2"):
        make_worlds("Clock-v0", 2).reset([1])


def test_the_town_comes_with_legal_actions_and_survival():
    adapter = make_worlds(TOWN_ID, 3, level="hamlet")
    obs, legal = adapter.reset([1, 2, 3])
    assert obs.shape == (3, adapter.obs_size)
    assert legal.shape == (3, 6)
    assert legal.dtype == bool
    step = adapter.step(np.full(3, 5))
    assert step.survival.tolist() == [1, 1, 1]
    assert step.reward.dtype == np.float32
    assert adapter.resumable


def test_popgym_ids_are_imported_on_demand():
    adapter = make_worlds("popgym-PositionOnlyCartPoleEasy-v0", 2)
    assert (adapter.obs_size, adapter.n_actions) == (2, 2)
    # popgym's get_state returns part of the state and there is no set_state: that is not enough
    assert "offers no get_state/set_state" in adapter.why_not_resumable
    obs, _ = adapter.reset([1, 2])
    assert np.array_equal(obs, adapter.reset([1, 2])[0])


def rollout(adapter, steps, start=0):
    out = []
    for t in range(start, start + steps):
        step = adapter.step(np.arange(adapter.num_envs) % 2 ^ (t % 2))
        out.append([*step.obs.ravel(), *step.reward, *step.terminated, *step.truncated, *step.first])
    return out


@pytest.mark.parametrize("env_id", ["SavableClock-v0", "LimitedClock-v0", TOWN_ID])
@pytest.mark.parametrize("at", [1, 4, 5, 9])
def test_a_restored_world_goes_on_exactly(env_id, at):
    """Also in the middle of an episode, at its end (autoreset pending), and under a time limit."""
    args = {"max_steps": 5, "level": "hamlet"} if env_id == TOWN_ID else {}
    first = make_worlds(env_id, 3, **args)
    first.reset([5, 6, 7])
    rollout(first, at)
    state = first.get_state()
    expected = rollout(first, 30, at)
    second = make_worlds(env_id, 3, **args)
    second.reset([50, 60, 70])
    second.set_state(state)
    assert rollout(second, 30, at) == expected
    second.reset([50, 60, 70])
    assert rollout(second, 30, at) != expected  # the control: without the state it is another story


def test_what_cannot_be_saved_says_why():
    class Mirror(gymnasium.Wrapper):
        pass

    wrapped = VectorAdapter(SyncVectorEnv([lambda: Mirror(gymnasium.make("SavableClock-v0"))]), "mirrored")
    assert wrapped.why_not_resumable == "mirrored is wrapped in Mirror, whose state cannot be saved"
    for adapter in (make_worlds("Clock-v0", 1), wrapped):
        for attempt in (adapter.get_state, lambda a=adapter: a.set_state({})):
            with pytest.raises(ValueError, match=r"no get_state/set_state|wrapped in Mirror"):
                attempt()
    two, one = make_worlds("SavableClock-v0", 2), make_worlds("SavableClock-v0", 1)
    two.reset([1, 2])
    with pytest.raises(ValueError, match="state has 2 environments; expected 1"):
        one.set_state(two.get_state())
    two.close()
