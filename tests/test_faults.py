"""A world that misbehaves is stopped by an error that names it, the environment, the step, and what was expected."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from worlds import clock

from townlet.cli import main
from townlet.envs.adapter import VectorAdapter, make_worlds
from townlet.trainer import Trainer

SPACE = Dict({"at": Box(0, 9, (2,), np.float32), "key": Discrete(3), "pixel": Box(0, 255, (1,), np.uint8)})
GOOD = {"at": np.zeros(2, np.float32), "key": 1, "pixel": np.zeros(1, np.uint8)}


class Faulty(gymnasium.Env):
    """Does what it should, but for the call after `good` steps: then `faulty` says what comes back."""

    observation_space, action_space = SPACE, Discrete(2)

    def __init__(self, faulty, good, at_reset=False):
        self.faulty, self.good, self.at_reset = faulty, good, at_reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.at_reset:
            return self.faulty()
        return dict(GOOD), {}

    def step(self, action):
        self.good -= 1
        if self.good < 0:
            return self.faulty()
        return dict(GOOD), 1.0, False, False, {}


def adapter(faulty, good=2, at_reset=False):
    """Environment 1 of 3 misbehaves, at step `good` + 1."""
    fine = [lambda: Faulty(None, 10**9)]
    bad = [lambda: Faulty(faulty, good, at_reset)]
    return VectorAdapter(SyncVectorEnv(fine + bad + fine), "w")


def steps(worlds, n=3):
    worlds.reset([1, 2, 3])
    for _ in range(n):
        worlds.step(np.zeros(worlds.num_envs, int))


def broken():
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (broken, rf"raised ZeroDivisionError: division by zero \({re.escape(__file__)}, line \d+\)$"),
        (
            lambda: (GOOD, 1.0, False, {}),
            r"returned \(.*\); expected \(observation, reward, terminated, truncated, info",
        ),
        (
            lambda: ({**GOOD, "at": np.zeros(3)}, 1.0, False, False, {}),
            r"observation\['at'\] of shape \[3\]; expected \[2\]",
        ),
        (
            lambda: ({**GOOD, "at": [[1, 2], [3]]}, 1.0, False, False, {}),
            r"observation\['at'\] \[\[1, 2\], \[3\]\]; exp",
        ),
        (
            lambda: ({**GOOD, "at": ["x", "y"]}, 1.0, False, False, {}),
            r"observation\['at'\] of dtype <U1; expected float32",
        ),
        (
            lambda: ({**GOOD, "pixel": np.ones(1)}, 1.0, False, False, {}),
            r"\['pixel'\] of dtype float64; expected uint8",
        ),
        (lambda: ({"at": GOOD["at"]}, 1.0, False, False, {}), r"no observation\['key'\]; expected Discrete\(3\)"),
        (lambda: (GOOD, [1.0, 2.0], False, False, {}), r"returned reward \[1.0, 2.0\]; expected a number"),
        (lambda: (GOOD, 1.0, False, False, None), r"returned info None; expected a dict"),
    ],
)
def test_an_environment_that_misbehaves_is_named(faulty, message):
    with pytest.raises(ValueError, match=r"^w: at step 3: step of environment 1 .*" + message):
        steps(adapter(faulty))
    steps(adapter(faulty), 2)  # the control: before that step nothing is wrong


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (broken, r"^w: at step 0: reset of environment 1 raised ZeroDivisionError"),
        (lambda: GOOD, r"^w: at step 0: reset of environment 1 returned .*; expected \(observation, info\)"),
        (
            lambda: ({**GOOD, "at": np.zeros(3)}, {}),
            r"reset of environment 1 returned observation\['at'\] of shape \[3\]",
        ),
    ],
)
def test_so_it_is_at_reset(faulty, message):
    with pytest.raises(ValueError, match=message):
        steps(adapter(faulty, at_reset=True))


def odd(reward=0.0, info=None, **obs):
    return lambda: ({**GOOD, **obs}, reward, False, False, info or {})


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (odd(np.nan), r"^w: reward of environment 1 at step 3 is not finite: .*nan"),
        (odd(at=[0, -np.inf]), r"^w: observation of environment 1 at step 3 is not finite: .*-inf"),
        (odd(key=3), r"^w: at step 3: observation\['key'\] of environment 1 is 3; expected a value of Discrete\(3\)"),
        (odd(info={"legal": np.ones(2, bool)}), r"^w: at step 3: .* legal actions, but reset gave none"),
    ],
)
def test_numbers_that_cannot_be_are_named(faulty, message):
    with pytest.raises(ValueError, match=message):
        steps(adapter(faulty))


class Batch(VectorEnv):
    """Two environments in one, whose step returns what is given."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space, single_action_space, num_envs = Box(-1, 1, (3,), np.float32), Discrete(2), 2

    def __init__(self, given=None, info=None, **arguments):
        good = {"obs": np.zeros((2, 3), np.float32), "reward": np.zeros(2), "terminated": [False] * 2}
        self.given, self.info, self.arguments = (
            {**good, "truncated": [False] * 2, **(given or {})},
            info or {},
            arguments,
        )

    def reset(self, *, seed=None, options=None):
        return self.given["obs"], {k: v for k, v in self.info.items() if k != "late"}

    def step(self, actions):
        return *self.given.values(), self.info


@pytest.mark.parametrize(
    ("given", "info", "message"),
    [
        ({"obs": np.zeros((2, 4))}, {}, r"^w: at step 0: observation has shape \[2, 4\]; expected \[2, 3\]"),
        ({"obs": np.full((2, 3), "a")}, {}, r"^w: at step 0: observation has dtype <U1; expected numbers"),
        ({"reward": np.zeros(3)}, {}, r"^w: at step 1: reward has shape \[3\]; expected \[2\]"),
        ({"reward": [None, "x"]}, {}, r"^w: at step 1: reward is \[None, 'x'\]; expected 2 numbers"),
        ({"terminated": np.zeros((2, 1))}, {}, r"^w: at step 1: terminated has shape \[2, 1\]; expected \[2\]"),
        ({"truncated": False}, {}, r"^w: at step 1: truncated has shape \[\]; expected \[2\]"),
        (
            {},
            {"legal": np.ones((2, 3), bool)},
            r"^w: at step 0: mask of legal actions has shape \[2, 3\].*expected \[2, 2\]",
        ),
        ({}, {"action_mask": np.ones(2)}, r"^w: at step 0: mask of legal actions has shape \[2\] and dtype float64"),
        ({}, {"legal": np.ones((2, 2))}, r"^w: at step 0: mask of legal actions has .* dtype float64; .* bool"),
    ],
)
def test_a_vector_environment_that_misbehaves_is_named(given, info, message):
    with pytest.raises(ValueError, match=message):
        _run(VectorAdapter(Batch(given, info), "w"))
    _run(VectorAdapter(Batch(), "w"))


def _run(worlds):
    worlds.reset([1, 2])
    worlds.step(np.zeros(2, int))


def test_a_step_without_a_mask_allows_everything():
    info = {"action_mask": np.array([[1, 0], [0, 1]], np.int8)}
    worlds = VectorAdapter(Batch(info=info))
    assert worlds.reset([1, 2])[1].tolist() == [[True, False], [False, True]]
    info.clear()
    worlds.env.info = {}
    assert worlds.step(np.zeros(2, int)).legal.tolist() == [[True, True]] * 2


gymnasium.register("Batch-v0", vector_entry_point=lambda num_envs, **arguments: Batch(**arguments))


def test_a_world_registered_as_a_vector_only_is_opened_as_one():
    worlds = make_worlds("Batch-v0", 2, speed=3)
    assert isinstance(worlds.env, Batch)
    assert worlds.env.arguments == {"speed": 3}


def test_training_ends_with_the_worlds_own_error_and_its_checkpoint_stays(tmp_path):
    run = tmp_path / "run"
    config = clock(env="Clock-v0", env_args={"fault_at": 30, "fault": "reward"}, run_dir=str(run), checkpoint_every=40)
    with pytest.raises(ValueError, match=r"Clock-v0: reward of environment \d at step 3\d is not finite"):
        Trainer(config).train()
    assert Trainer.resume(run).env_steps == 120


# ---- where worlds come from -----------------------------------------------------------------------------------------

MODULE = """
import gymnasium
from worlds import Clock
gymnasium.register("{id}", Clock)
"""


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    (tmp_path / "own_world_1.py").write_text(MODULE.format(id="Own1-v0"))
    worlds = make_worlds("own_world_1:Own1-v0", 2)
    assert worlds.reset([1, 2])[0].shape == (2, 2)
    with pytest.raises(ValueError, match=r"own_world_1:Own2-v0: cannot be made with no arguments: .*Near: Own1-v0\."):
        make_worlds("own_world_1:Own2-v0", 2)


def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "own_world_2.py").write_text("import gymnasium\n1 / 0\n")
    with pytest.raises(
        ValueError, match=r"own_world_2:X-v0: own_world_2 cannot be imported: ZeroDivisionError.*line 2\)"
    ):
        make_worlds("own_world_2:X-v0", 1)
    (tmp_path / "own_world_3.py").write_text("import not_there_at_all\n")
    assert main(["train", "--env", "own_world_3:X-v0"]) == 2
    assert "needs the package 'not_there_at_all'" in capsys.readouterr().err


def test_an_error_in_a_worlds_own_making_is_shown():
    def make(**arguments):
        raise KeyError("level")

    gymnasium.register("Unmade-v0", make)
    with pytest.raises(
        ValueError, match=r"Unmade-v0: cannot be made with \{'size': 3\}: KeyError: 'level' \(.*line \d+"
    ):
        make_worlds("Unmade-v0", 1, size=3)
