"""MiniGrid through the adapter: symbols as planes, missions as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import tiny

from townlet.envs.adapter import make_worlds
from townlet.envs.images import find_image
from townlet.networks import RecurrentConvQNetwork
from townlet.trainer import Trainer

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
    assert "SymbolicObservation" in trainer.worlds.why_not_resumable
