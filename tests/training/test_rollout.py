"""Acting apart from learning: a `Rollout` with an actor and a store of the test's own, and as part of a run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import TESTS
from trees import same
from worlds import clock, tiny

from townlet.runs import checkpoint
from townlet.training.rollout import Rollout
from townlet.training.trainer import Trainer

NEVER = torch.zeros(2, 4, dtype=torch.float64)
BEFORE = TESTS / "data" / "before_rollout.ckpt"


class Counter:
    """An actor whose state counts its steps, and which takes legal actions in turn."""

    def __init__(self, steps=0):
        self.steps, self.epsilons = steps, []

    @property
    def state(self):
        return torch.full((2, 4, 1), float(self.steps)), torch.full((2, 4, 1), -float(self.steps))

    def act(self, obs, reset, legal, epsilon):
        self.steps += 1
        self.epsilons.append(epsilon)
        turn = torch.full((2, 4), self.steps % 2)
        return turn if legal is None else legal.long().argmax(-1)


class Log:
    """A store that remembers what it was given."""

    def __init__(self):
        self.rows, self.finals = [], []

    def add(self, *row):
        self.rows.append([v if v is None else v.clone() for v in row])

    def add_final(self, ended, obs, legal, h, c):
        self.finals.append((ended.clone(), obs.copy(), h.clone()))


def play(rollout, actor, steps):
    log = Log()
    for _ in range(steps):
        assert rollout.step(actor, log, NEVER) == 4
    return log


def test_a_step_stores_what_the_actor_saw_and_what_came_of_it():
    rollout, actor = Rollout(clock()), Counter()
    log = play(rollout, actor, 12)
    assert all(epsilon is NEVER for epsilon in actor.epsilons)
    for t, (obs, reset, legal, h, c, action, reward, terminated, mask) in enumerate(log.rows):
        assert legal is None
        assert (h == t).all()  # the state from before the observation
        assert (c == -t).all()
        assert (action == (t + 1) % 2).all()
        tick, length = obs.unbind(-1)
        over = tick == length
        assert torch.equal(reset, tick == 0)
        assert torch.equal(mask, ~over)
        assert torch.equal(reward, ((action == tick % 2) & ~over).float())
        assert torch.equal(terminated, (tick + 1 == length) & (length % 2 == 1))
    assert {bool(row[1].any()) for row in log.rows} == {True, False}, "control: episodes end, and not all the time"
    assert all(v > 0 for v in rollout.seconds.values())
    assert list(rollout.seconds) == ["act", "env", "replay"]


@pytest.mark.parametrize("make", [clock, tiny], ids=["clock", "town"])
@pytest.mark.parametrize("restored", [True, False])
def test_another_owner_goes_on_where_the_first_one_was(make, restored):
    """What another process gets, settings and a state_dict, is all that the next steps depend on."""
    config = make(curriculum=None) if make is clock else make(curriculum=("0 size=4", "20 size=5"))
    first = Rollout(config)
    actor = Counter()
    play(first, actor, 7)
    if make is tiny:
        assert first.enter_stage(20, actor, Log())
        play(first, actor, 7)
    state, steps = first.state_dict(), actor.steps
    second = Rollout(config)
    if restored:
        assert second.load_state_dict(state) is None
    mine, other = play(first, actor, 9), play(second, Counter(steps), 9)
    assert same(mine.rows, other.rows) is restored  # False: the control, a rollout that was told nothing
    assert same(first.state_dict(), second.state_dict()) is restored


def test_a_state_stays_as_it_was_while_the_rollout_goes_on():
    rollout, actor = Rollout(clock()), Counter()
    play(rollout, actor, 3)
    state = rollout.state_dict()
    copy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    returns = state["episodes"]["returns"].copy()
    play(rollout, actor, 3)
    assert all(same(state[k], copy[k]) for k in ("obs", "reset", "over"))
    assert np.array_equal(state["episodes"]["returns"], returns)
    assert not same(rollout.state_dict()["obs"], copy["obs"])


def test_a_stage_begins_at_its_step_and_cuts_the_episodes():
    rollout, actor, log = Rollout(tiny(curriculum=("0 size=4", "40 size=5"))), Counter(), Log()
    play(rollout, actor, 2)
    assert not rollout.enter_stage(39, actor, log)
    assert not log.rows
    reached = rollout.obs.clone()
    worlds = rollout.worlds
    assert rollout.enter_stage(40, actor, log)
    assert (rollout.stage, rollout.restarts) == (1, 1)
    assert rollout.worlds is not worlds
    assert rollout.worlds.env.args.size == 5
    [(obs, _, _, h, _, _, reward, terminated, mask)] = log.rows
    assert torch.equal(obs, reached)
    assert (h == 2).all()
    assert not any(v.any() for v in (reward, terminated, mask))
    assert rollout.reset.all()
    assert not rollout.over.any()
    assert not rollout.episodes.lengths.any()
    assert not rollout.enter_stage(41, actor, log)


def test_worlds_that_cannot_be_saved_say_why():
    rollout = Rollout(clock(env="Clock-v0"))
    state = rollout.state_dict()
    assert state["worlds"] is None
    why = Rollout(clock(env="Clock-v0")).load_state_dict(state)
    assert "Clock-v0 offers no get_state/set_state" in why
    assert Rollout(clock()).load_state_dict({**Rollout(clock()).state_dict(), "worlds": None}) == (
        "the checkpoint does not hold the worlds"
    )


@pytest.mark.parametrize("name", ["obs", "reset", "over"])
def test_a_state_of_another_shape_is_refused_by_name(name):
    rollout = Rollout(clock())
    before = rollout.obs.clone()
    with pytest.raises(ValueError, match=rf"^{name} is \(torch.*\); expected \(torch"):
        rollout.load_state_dict({**rollout.state_dict(), name: torch.zeros(3)})
    assert torch.equal(rollout.obs, before)


def test_it_knows_nothing_of_learning_records_and_checkpoints():
    """Importing it brings none of them along, so that an actor's process stays small."""
    foreign = ("trainer", "learner", "pbt", "schedules", "checkpoint", "metrics", "events", "html", "plots")
    code = "import sys, townlet.training.rollout; print(*(n for n in sys.modules if n.startswith('townlet.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "townlet.training.rollout" in loaded
    assert not [n for n in loaded if n.split(".")[1] in foreign]


def test_a_checkpoint_from_before_the_rollout_was_a_part_of_its_own_goes_on(tmp_path):
    """Written by the trainer that still held the worlds itself, in stage 2 of its curriculum."""
    tree = checkpoint.read_file(BEFORE)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    path = folder / "checkpoints" / "step_000000000040.ckpt"
    path.write_bytes(BEFORE.read_bytes())
    run = Trainer.resume(folder, {"total_steps": 80})
    assert (run.env_steps, run.updates) == (40, tree["learner"]["updates"])
    assert (run.rollout.stage, run.rollout.restarts) == (tree["stage"], tree["restarts"]) == (1, 1)
    now = run.state_dict()
    assert now.keys() == tree.keys()
    assert same({k: v for k, v in now.items() if k != "config"}, {k: v for k, v in tree.items() if k != "config"})
    assert now["seconds"] == tree["seconds"]
    run.train()
    assert run.env_steps == 80
    assert run.updates > tree["learner"]["updates"]
    assert run.population.online_flat.isfinite().all()
