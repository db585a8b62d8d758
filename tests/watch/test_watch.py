"""Watching: what is shown of the agent is what it saw, thought and did, and showing it changes nothing."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds as _worlds  # noqa: F401  registers the worlds
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image
from worlds import Clock, tiny

from townlet.envs.adapter import VectorAdapter
from townlet.envs.make import make_worlds
from townlet.evaluate import GreedyActor
from townlet.evaluation import thoughts
from townlet.learning.networks import RecurrentQNetwork
from townlet.report import Agent
from townlet.support.ids import TOWN_ID
from townlet.watch import episode as watch
from townlet.watch import panel

pytestmark = pytest.mark.usefixtures("one_thread")


def agent(env: str = TOWN_ID, seed: int = 1, **changes: Any) -> Agent:
    config = tiny(env=env, **changes)
    adapter = make_worlds(config.env, 1, **config.evaluation_args)
    network = RecurrentQNetwork(adapter.obs_size, adapter.n_actions, encoder=(8,), hidden_size=8, head_size=8)
    adapter.close()
    params = {k: 2 * v for k, v in network.init([seed, seed + 1]).items()}
    return Agent(config, network, params, 0)


def played(a: Agent, memory: bool = True, member: int = 0, steps: int = 30) -> list[watch.Moment]:
    return list(watch.episode(a, "ansi", seed=5, member=member, memory=memory, max_steps=steps))


@pytest.mark.parametrize("memory", [True, False])
def test_the_thoughts_shown_are_those_acted_on(memory) -> None:
    a = agent()
    moments = played(a, memory, member=1)
    assert len(moments) == 31
    worlds = a.worlds(1)
    obs, legal = worlds.reset([5])
    actor, score = GreedyActor(a.network, a.member(1), 1, memory=memory), 0.0
    first = np.ones(1, bool)
    for t, moment in enumerate(moments):
        thought = moment.thought
        assert thought is not None
        # the state cleared: a first step, in an actor that has none
        cleared = GreedyActor(a.network, a.member(1), 1).step(obs, legal, np.ones(1, bool))
        before = actor.h.clone()
        out = actor.step(obs, legal, first)
        assert np.array_equal(thought.obs, obs[0])
        assert torch.equal(torch.from_numpy(thought.q), out.q[0, 0])
        assert torch.equal(torch.from_numpy(thought.q_cleared), cleared.q[0, 0])
        assert thought.action == int(out.action)
        assert thought.cleared_action == int(cleared.action)
        assert np.array_equal(thought.change, (out.h - before)[0, 0].numpy())
        assert (moment.steps, moment.score) == (t, score)
        assert len(thought.norms) == len(thought.effects) == t + 1
        assert thought.norms[-1] == pytest.approx(float(out.h.norm()))
        possible = legal[0]
        assert thought.effects[-1] == pytest.approx(float((out.q - cleared.q)[0, 0][possible].abs().max()))
        largest = np.abs(thought.change)[thought.most_changed]
        assert len(largest) == 5
        assert largest.min() >= np.delete(np.abs(thought.change), thought.most_changed).max()
        step = worlds.step(np.array([int(out.action)]))
        obs, legal, first, score = step.obs, step.legal, np.zeros(1, bool), score + float(step.reward[0])
    assert (max(moments[-1].thought.effects[1:]) > 0) is memory


def test_an_episode_ends_without_a_thought() -> None:
    moments = played(agent("Clock-v0"))
    assert 4 <= len(moments) <= 8
    assert [m.thought is None for m in moments] == [False] * (len(moments) - 1) + [True]
    assert moments[-1].frame.startswith(f"tick {len(moments) - 1} of")


@pytest.mark.parametrize(
    "args",
    [{}, {"level": "town"}, {"level": "town", "window": "kind", "radius": 1, "size": 6}, {"partial": False}],
    ids=["hamlet", "town", "town by kind", "whole map"],
)
def test_the_map_seen_so_far_is_what_was_in_sight(args) -> None:
    a = agent(env_args=args)
    worlds = a.worlds(1)
    town = worlds.env
    obs, legal = worlds.reset([5])
    seen, rng = thoughts.SeenMap(town.args), np.random.default_rng(0)
    size, radius = town.args.size, town.args.radius_used
    sighted, stood = np.zeros((size, size), bool), np.zeros((size, size), bool)
    for _ in range(60):
        seen.add(obs[0])
        state = town.get_state()
        x, y = int(state["x"][0]), int(state["y"][0])
        assert seen.position == (x, y)
        at = dict(zip((int(c) for c in state["cells"][0]), town.args.kinds, strict=True))
        stood[y, x] = True
        near = [(i, j) for i in range(size) for j in range(size)]
        if town.args.partial:
            near = [(i, j) for i, j in near if max(abs(i - y), abs(j - x)) <= radius]
        for i, j in near:
            sighted[i, j] = True
        for (i, j), what in np.ndenumerate(seen.cells):
            kind = at.get(i * size + j)
            tells = town.args.window_used == "kind" or not town.args.partial or stood[i, j]
            expected = thoughts.EMPTY if kind is None else kind if tells else thoughts.SOMETHING
            assert what == (expected if sighted[i, j] else thoughts.UNSEEN)
        if town.args.partial:
            for (i, j), what in np.ndenumerate(seen.window):
                inside = 0 <= y - radius + i < size and 0 <= x - radius + j < size
                assert (what == thoughts.OFF_GRID) is not inside
        obs, legal = worlds.step(rng.choice(np.flatnonzero(legal[0][:5]), 1))[0::4][:2]
    assert seen.share == sighted.mean()
    assert seen.share == 1.0 or town.args.partial


def test_actions_are_called_what_the_world_calls_them() -> None:
    class Named(Clock):
        actions = IntEnum("Actions", ["stay", "go"], start=0)

    class Meant(Clock):
        def get_action_meanings(self) -> list[str]:
            return ["NOOP", "FIRE"]

    class Other(Clock):
        actions = IntEnum("Actions", ["one", "two", "three"])

    for kind, names in ((Named, ["stay", "go"]), (Meant, ["NOOP", "FIRE"]), (Other, ["action 0", "action 1"])):
        envs = SyncVectorEnv([kind], autoreset_mode=AutoresetMode.NEXT_STEP)
        assert thoughts.labels(VectorAdapter(envs).action_names) == names
    assert thoughts.labels(agent().worlds(1).action_names)[0] == "↑ up"


def test_the_text_marks_the_greedy_action_and_what_is_not_legal() -> None:
    moments = played(agent())
    for moment in moments:
        lines = panel.text(moment.thought, moment.names, moment.seen).splitlines()
        rows = lines[1:7]
        assert [("▶" in row) for row in rows] == [a == moment.thought.action for a in range(6)]
        assert [("not legal" in row) for row in rows] == [not ok for ok in moment.thought.legal]
        best = rows[moment.thought.action]
        assert "█" * 20 in best
        assert f"{moment.thought.q[moment.thought.action]:.3f}" in best
        assert f"{moment.thought.q_cleared[moment.thought.action]:.3f}" in best
        assert "seen so far" in lines[7]
        assert sum(" @" in line for line in lines) <= 1
    last = moments[-1]
    for cleared in range(6):
        shown = panel.text(dataclasses.replace(last.thought, cleared_action=cleared), last.names, last.seen)
        same = cleared == last.thought.action
        assert [("▶" in row) for row in shown.splitlines()[1:7]] == [a == last.thought.action for a in range(6)]
        assert shown.endswith("it would choose " + ("the same" if same else last.names[cleared]))


def test_a_world_that_cannot_be_drawn_shows_numbers(tmp_path) -> None:
    a, stream = agent("Recall-v0"), io.StringIO()
    steps, _ = watch.in_terminal(a, stream, fps=8, seed=5)
    assert steps == 6
    shown = stream.getvalue()
    assert shown.count("sees ") == 6
    assert "action 1" in shown
    watch.to_gif(a, tmp_path / "r.gif", fps=8, seed=5)
    with Image.open(tmp_path / "r.gif") as image:
        assert image.width == panel.WIDTH
        assert image.n_frames >= 6
    assert [p.name for p in tmp_path.iterdir()] == ["r.gif"]
    wide = agent(env_args={"level": "town"}).network.obs_size
    assert len(panel._numbers(np.zeros(wide))) > 1


def test_the_picture_shows_frame_and_panel() -> None:
    for moment in watch.episode(agent(), "rgb_array", seed=5, max_steps=2):
        image = watch._beside(moment, moment.thought)
        assert image.dtype == np.uint8
        assert image.shape == (560, 880 + panel.WIDTH, 3)
        assert np.array_equal(image[:, :880], moment.frame)
    clock = next(watch.episode(agent("Clock-v0"), "rgb_array", seed=5))
    small = watch._beside(clock, clock.thought)
    assert small.shape[0] == panel.panel_height(clock.thought, clock.names, None)
    assert small.shape[1] > panel.WIDTH + 100, "a picture of 8 pixels is made larger"


def test_the_panel_has_a_red_bar_for_the_greedy_action_only() -> None:
    moments = played(agent())
    red = np.array(panel._RED)
    for action in {m.thought.action for m in moments}:
        moment = next(m for m in moments if m.thought.action == action)
        drawn = panel.picture(moment.thought, moment.names, moment.seen, 560).astype(int)
        rows = drawn[46:166, panel._LEFT + 103]  # where the bars begin
        is_red = (np.abs(rows - red).sum(-1) < 30).reshape(6, 20).sum(1)
        assert is_red.argmax() == action
        assert (np.delete(is_red, action) == 0).all()


def test_the_panel_compares_what_chooses_not_how_high_the_values_are() -> None:
    moment = played(agent())[-1]

    def draw(cleared: np.ndarray) -> np.ndarray:
        thought = dataclasses.replace(moment.thought, q_cleared=cleared)
        return panel.picture(thought, moment.names, moment.seen, 560)

    q = moment.thought.q_cleared
    shifted, other = draw(q + 50), draw(q + 0.1 * np.arange(6, dtype=np.float32))
    assert np.array_equal(shifted, draw(q))
    assert not np.array_equal(other, draw(q))


@pytest.mark.parametrize(
    ("typed", "goes_on", "paused"),
    [(b"", True, False), (b"q", False, False), (b" n", True, True), (b"  ", True, False), (b"xn", True, True)],
)
def test_keys(typed, goes_on, paused, monkeypatch) -> None:
    read, write = os.pipe()
    os.write(write, typed)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    keys = watch._Keys()
    assert keys.wait(0.01) is goes_on
    assert keys.paused is paused
    os.close(write)
    assert keys.paused or keys.wait(10.0) is False  # the terminal is gone
    sys.stdin.close()


def test_quitting_ends_the_episode_and_gives_the_terminal_back(monkeypatch) -> None:
    pytest.importorskip("termios")
    import termios

    master, slave = os.openpty()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", os.fdopen(slave))
    before = termios.tcgetattr(sys.stdin)
    os.write(master, b"nnq")
    stream = Terminal()
    steps, _ = watch.in_terminal(agent(), stream, fps=1000.0, seed=5, max_steps=400)
    assert steps == 2
    assert watch.KEYS in stream.getvalue()
    assert termios.tcgetattr(sys.stdin) == before
    sys.stdin.close()
    os.close(master)


def test_a_gif_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(self: Any, path: Any, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        watch.to_gif(agent("Recall-v0"), tmp_path / "r.gif", fps=8, seed=5)
    assert list(tmp_path.iterdir()) == []
