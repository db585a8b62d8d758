"""PettingZoo's parallel environments: each agent's stream against one worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from duel import Duel
from worlds import tiny

from townlet.envs.make import make_worlds
from townlet.envs.pettingzoo import ParallelVectorEnv
from townlet.envs.workers import WorkerAdapter
from townlet.evaluate import GreedyActor
from townlet.report import Agent
from townlet.training.trainer import Trainer
from townlet.watch.episode import episode

pytestmark = pytest.mark.usefixtures("one_thread")
DUEL = "pettingzoo:duel"

# One copy, "brief" always takes action 1 and "long" action 2. Each row is what a step returns, for (brief, long):
# tick and episode seen, reward, terminated, truncated, first, idle.
BY_HAND = [
    [(1, 0, 1, 0, 0, 0, 0), (1, 0, 12, 0, 0, 0, 0)],
    [(2, 0, 1, 1, 0, 0, 0), (2, 0, 12, 0, 0, 0, 0)],  # brief is done; this is its final observation
    [(2, 0, 0, 0, 0, 1, 1), (3, 0, 12, 0, 0, 0, 0)],  # and stays
    [(2, 0, 0, 0, 0, 1, 1), (4, 0, 12, 0, 1, 0, 0)],  # long is cut: the episode is over
    [(0, 1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, 1, 0)],  # both begin again; no action is taken
    [(1, 1, 1, 0, 0, 0, 0), (1, 1, 12, 0, 0, 0, 0)],
    [(2, 1, 1, 1, 0, 0, 0), (2, 1, 12, 0, 0, 0, 0)],
    [(2, 1, 0, 0, 0, 1, 1), (3, 1, 12, 0, 0, 0, 0)],
    [(2, 1, 0, 0, 0, 1, 1), (4, 1, 12, 1, 0, 0, 0)],  # long terminates
    [(0, 2, 0, 0, 0, 1, 0), (0, 2, 0, 0, 0, 1, 0)],
]


def rows(step, i):
    flags = (step.terminated, step.truncated, step.first, step.idle)
    return (*step.obs[i, 1:3], step.reward[i], *(flag[i] for flag in flags))


def test_the_streams_of_two_agents_are_those_worked_out_by_hand():
    adapter = make_worlds(DUEL, 4)
    obs, legal = adapter.reset([7, 8, 9, 10])
    copies = adapter.env.copies
    assert legal is None
    assert obs.tolist() == [[0, 0, 0], [1, 0, 0]] * 2
    assert [c.seeds for c in copies] == [[7], [9]]
    for expected in BY_HAND:
        step = adapter.step(np.array([1, 2, 1, 2]))
        assert step.obs[:, 0].tolist() == [0, 1, 0, 1]
        for i in range(4):
            assert rows(step, i) == expected[i % 2]
    both, long = {"brief": 1, "long": 2}, {"long": 2}
    assert copies[0].asked == copies[1].asked == [both, both, long, long] * 2, "who is done is not asked"
    adapter.close()
    assert all(c.closed for c in copies)


def stored(trainer):
    """What replay holds of the two streams: {name: [steps, 2, ...]}."""
    steps = int(trainer.replay._count[0])
    data = {k: v.view(2, trainer.replay.ring, *v.shape[1:])[:, :steps] for k, v in trainer.replay._data.items()}
    return {k: v.transpose(0, 1) for k, v in data.items()}


def duel(**changes):
    sizes = {"members": 1, "num_envs": 2, "eval_episodes": 4, "final_eval_episodes": 2, "learning_starts": 14}
    return tiny(env=DUEL, **{**sizes, **changes})


def test_nothing_is_trained_of_an_agent_that_is_gone():
    trainer = Trainer(duel(replay_ratio=0.0))
    for _ in range(10):
        trainer.act_step()
    got = stored(trainer)
    # observation 0, 1, 2 ... of each stream: a transition is real unless its observation is final, or idle
    assert got["mask"][:, 0].tolist() == [True, True, False, False, False] * 2
    assert got["mask"][:, 1].tolist() == [True, True, True, True, False] * 2
    assert got["terminated"][:, 0].tolist() == [False, True, False, False, False] * 2
    assert got["terminated"][:, 1].tolist() == [False] * 8 + [True, False]
    assert got["reset"][:, 0].tolist() == [True, False, False, True, True] * 2
    assert got["reset"][:, 1].tolist() == [True, False, False, False, False] * 2
    assert got["obs"][:, 1, 1].tolist() == [0, 1, 2, 3, 4] * 2
    returns = trainer.rollout.episodes.drain()
    assert returns["episodes"].tolist() == [4]
    assert returns["train_length"].tolist() == [3], "two steps and four, whatever waiting there was"


def test_a_run_trains_and_evaluates_all_agents_and_copies():
    trainer = Trainer(duel(members=2, num_envs=4, total_steps=160, learning_starts=40))
    before = trainer.population.online_flat.clone()
    trainer.train()
    assert trainer.updates > 0
    assert (trainer.population.online_flat != before).any(1).all()
    assert trainer.evaluate().lengths.tolist() == [[2, 4, 2, 4]] * 2


def test_watching_shows_the_first_agent_while_all_play(tmp_path):
    run = tmp_path / "run"
    Trainer(duel(total_steps=40, run_dir=str(run))).train()
    asked = []

    def step(duel, actions, play=Duel.step):
        asked.append(dict(actions))
        return play(duel, actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Duel, "step", step)
        moments = list(episode(Agent.load(run), "ansi", seed=3))
    assert [m.frame for m in moments] == ["tick 0", "tick 1", "tick 2"], "brief's episode has two steps"
    assert [a["brief"] for a in asked] == [m.thought.action for m in moments[:2]]
    assert moments[-1].score == sum(m.thought.action for m in moments[:2])
    trainer = Trainer.resume(run)
    actor = GreedyActor(trainer.network, trainer.population.online, 1)
    seen = np.array([[1.0, 0.0, 0.0]], np.float32)  # what long sees first
    assert asked[0]["long"] == actor(seen, None, np.ones(1, bool))[0]


def test_workers_hold_whole_copies():
    one, many = make_worlds(DUEL, 6), WorkerAdapter(lambda n: make_worlds(DUEL, n), 6, 2)
    one.reset(range(6)), many.reset(range(6))
    assert [(s.start, s.stop) for s in many._slices] == [(0, 2), (2, 6)]
    for _ in range(7):
        action = np.array([1, 2, 0, 1, 2, 0])
        a, b = one.step(action)._asdict(), many.step(action)._asdict()
        assert all(a[k] is b[k] is None or np.array_equal(a[k], b[k]) for k in a)
    many.close()


@pytest.mark.parametrize("masks", ["info", "obs"])
def test_action_masks_are_legal_actions(masks):
    adapter = make_worlds(DUEL, 2, masks=masks)
    assert adapter.obs_size == 3, "the mask is no part of what an agent sees"
    obs, legal = adapter.reset([1, 2])
    assert obs.tolist() == [[0, 0, 0], [1, 0, 0]]
    forbidden, everything = [False, True, True], [True, True, True]
    # in info, only "long" says what is legal
    assert legal.tolist() == [everything if masks == "info" else forbidden, forbidden]
    step = adapter.step(np.array([1, 2]))
    assert step.legal[1].tolist() == [True, False, True]
    assert make_worlds(DUEL, 2).reset([1, 2])[1] is None


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"duel: num_envs is 3; expected a multiple of its 2 agents \(brief, long\)"):
        make_worlds(DUEL, 3)
    with pytest.raises(ValueError, match=r"^num_envs is 3, final_eval_episodes is 5; expected multiples of 2, the"):
        Trainer(duel(members=2, num_envs=3, final_eval_episodes=5, capacity=800, learning_starts=40))
    with pytest.raises(ValueError, match=r"agents differ in their observation space \(brief: Box.*; long: Box.*4,"):
        make_worlds(DUEL, 2, fault="spaces")
    with pytest.raises(ValueError, match=r"duel: cannot be made with \{'speed': 3\}: .*speed"):
        make_worlds(DUEL, 2, speed=3)
    with pytest.raises(ValueError, match=r"pettingzoo:json: json has no parallel_env; expected"):
        make_worlds("pettingzoo:json", 1)
    with pytest.raises(ValueError, match=r"needs the package 'nowhere'.*pip install nowhere"):
        make_worlds("pettingzoo:nowhere.env_v0", 1)
    faults = iter(("", "late"))
    with pytest.raises(ValueError, match=r"no observation of long, environment 3; expected one of each agent until"):
        ParallelVectorEnv(lambda: Duel(fault=next(faults)), 4, "d").reset(seed=1)
    adapter = make_worlds(DUEL, 2, fault="raises")
    adapter.reset([1, 2])
    with pytest.raises(ValueError, match=r"step of the copy with environment 0 raised RuntimeError: the sword is bro"):
        adapter.step(np.array([0, 0]))
    assert make_worlds(DUEL, 1).num_envs == 2


def test_a_copy_without_agents_is_cut():
    adapter = make_worlds(DUEL, 2, fault="vanishes")
    adapter.reset([1, 2])
    steps = [adapter.step(np.array([1, 2])) for _ in range(4)]
    assert [s.truncated.tolist() for s in steps] == [[False, False]] * 2 + [[False, True], [False, False]]
    assert steps[3].first.tolist() == [True, True]
    assert steps[3].obs[:, 1].tolist() == [0, 0]


def test_one_of_pettingzoos_own():
    pytest.importorskip("pettingzoo")
    pytest.importorskip("pygame", reason="pettingzoo.classic draws with pygame")
    adapter = make_worlds("pettingzoo:pettingzoo.classic.rps_v2", 4, max_cycles=3)
    adapter.reset([1, 2, 3, 4])
    # 0 is nobody's move yet; paper (1) beats rock (0)
    steps = [adapter.step(np.array([0, 1, 1, 0])) for _ in range(4)]
    assert steps[0].reward.tolist() == [-1, 1, 1, -1]
    assert [s.truncated.all() for s in steps] == [False, False, True, False]
    assert steps[3].first.all()
