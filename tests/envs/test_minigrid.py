"""MiniGrid through the adapter: symbols as planes, missions as numbers."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from worlds import tiny

from townlet.envs.images import find_image
from townlet.envs.make import make_worlds
from townlet.learning.networks import RecurrentConvQNetwork
from townlet.training.trainer import Trainer

minigrid = pytest.importorskip("minigrid", reason="pip install minigrid (it needs pygame)")
MEMORY = "MiniGrid-MemoryS7-v0"


def test_observations_are_direction_and_symbols_a_constant_mission_is_left_out():
    adapter = make_worlds(MEMORY, 2)
    obs, legal = adapter.reset([1, 2])
    assert (adapter.obs_size, adapter.n_actions, legal) == (4 + 7 * 7 * 3, 7, None)
    seen = [env.unwrapped.gen_obs() for env in adapter._singles]
    assert np.array_equal(obs[:, 4:], [s["image"].ravel() for s in seen])
    assert np.array_equal(obs[:, :4], np.eye(4)[[s["direction"] for s in seen]])
    turned = adapter.step(np.array([1, 2])).obs
    assert turned[:, :4].argmax(1).tolist() == [1, 0], "the first turned right, the second went forward"
    image = find_image(adapter.env.single_observation_space, MEMORY)
    assert (image.start, image.symbols, image.planes) == (4, (11, 6, 4), 21)


def test_the_words_of_a_mission_that_change_are_numbers():
    adapter = make_worlds("MiniGrid-GoToDoor-5x5-v0", 8)
    obs, _ = adapter.reset(range(8))
    words = obs[:, -6:]  # after direction and image come the colours, as the alphabet has them
    colours = sorted(["red", "green", "blue", "purple", "yellow", "grey"])
    missions = [env.unwrapped.mission for env in adapter._singles]
    order = adapter._singles[0].unwrapped.observation_space["mission"].ordered_placeholders[0]
    assert sorted(order) == colours
    assert [order[i] for i in words.argmax(1)] == [m.split()[3] for m in missions]
    assert len(set(missions)) > 1, "control: they differ"


def test_missions_of_free_text_are_refused_by_name():
    with pytest.raises(ValueError, match=r"BabyAI-GoToRedBall-v0: .*BabyAIMissionSpace is not supported; expected"):
        make_worlds("BabyAI-GoToRedBall-v0", 1)


def test_a_short_run_with_convolutions_and_the_last_action():
    config = tiny(env=MEMORY, last_action=True, eval_max_steps=5, eval_episodes=1)
    trainer = Trainer(config)
    assert isinstance(trainer.network, RecurrentConvQNetwork)
    assert trainer.network.obs_size == 4 + 7 * 7 * 3 + 7
    before = trainer.population.online["conv.0.weight"].detach().clone()
    trainer.train()
    changed = (trainer.population.online["conv.0.weight"] != before).flatten(1).any(1)
    assert changed.all()
    assert "SymbolicObservation" in trainer.rollout.worlds.why_not_resumable


def test_the_benchmark_goes_on_where_it_was_stopped(tmp_path):
    import minigrid_memory as benchmark

    changes = {"env": MEMORY, "env_args": {"max_steps": 6}, "eval_every": 40, "checkpoint_every": 40, "members": 2}
    config = tiny(run_dir=str(tmp_path / "run"), final_eval_episodes=2, **changes)

    class Stopped(Exception):
        pass

    def stop(trainer, act=benchmark.Recorded.act_step):
        if trainer.env_steps >= 100:
            raise Stopped
        act(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.Recorded, "act_step", stop)
        with pytest.raises(Stopped):
            benchmark.run(tmp_path / "run", config)
    assert [row["step"] for row in benchmark.curve(tmp_path / "run")] == [40, 80]

    def interrupt(trainer, act=benchmark.Recorded.act_step):
        os.kill(os.getpid(), signal.SIGINT)
        act(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.Recorded, "act_step", interrupt)
        with pytest.raises(SystemExit, match="saved at step 84; call again to go on"):
            benchmark.run(tmp_path / "run", config)
    found = benchmark.run(tmp_path / "run", config)
    assert [row["step"] for row in found["curve"]] == [40, 80, 120, 160]
    assert all(len(row["success"]) == 2 for row in found["curve"])
    assert set(found["final"]) == {"carried", "zeroed at each step"}
    assert found["steps"] == 160
    benchmark.draw(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    won = np.array([[0.0, 0.9], [0.2, 0.3]])
    assert benchmark.success(type("E", (), {"returns": won})) == [0.5, 1.0]
