"""Exported networks act as Townlet does, in whole episodes, and need nothing of Townlet to do so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_worlds as _image_worlds  # noqa: F401  registers the world of images
import numpy as np
import pytest
import torch
import worlds as _worlds  # noqa: F401  registers the others
from command_line import arguments
from worlds import tiny

from townlet.cli import main
from townlet.evaluate import GreedyActor
from townlet.export import METADATA, export
from townlet.learning.assembly import build_network, open_worlds
from townlet.report import Agent
from townlet.settings.config import Config
from townlet.support.ids import TOWN_ID

pytestmark = pytest.mark.usefixtures("one_thread")

WORLDS: dict[str, dict[str, Any]] = {
    "Town": {"last_action": True, "last_reward": True},
    "Town, spatial": {"network": "spatial"},
    "no mask, no head": {"env": "Clock-v0", "encoder": (), "head_size": None, "dueling": False},
    "image": {"env": "Signs-v0", "network": "conv"},
    "without memory": {"memory": False},
    "several agents": {"env": "pettingzoo:duel"},
}


def agent(**changes: Any) -> Agent:
    """Two members with weights of twice the usual size, so that Q-values are apart."""
    config = tiny(**changes)
    adapter = open_worlds(config, 1, config.evaluation_args)
    network = build_network(config, adapter)
    adapter.close()
    return Agent(config, network, {k: 2 * v for k, v in network.init([1, 2]).items()}, 77)


def loaded(path: Path) -> tuple[Any, dict[str, Any]]:
    files = {METADATA: ""}
    module = torch.jit.load(str(path), _extra_files=files)
    return module, json.loads(files[METADATA])


def episodes(a: Agent, member: int, steps: int, n: int, step: Callable[..., Any]) -> int:
    """Plays Townlet's greedy actions and compares `step` with them; returns how many were compared."""
    worlds = a.worlds(n)
    obs, legal = worlds.reset(list(range(n)))
    actor, reset = GreedyActor(a.network, a.member(member), n, memory=a.config.memory), np.ones(n, bool)
    h = c = state_h = state_c = np.zeros((n, a.network.hidden_size), np.float32)
    over = False
    chosen = set()
    for _ in range(steps):
        out = actor.step(obs, legal, reset)
        # with the state that it carries itself: the same actions in whole episodes
        _, action, h, c = step(obs.copy(), reset, h, c, legal)
        assert np.array_equal(action, out.action[0].numpy())
        # from Townlet's state: one step's rounding alone, which doubled weights amplify from step to step
        q, _, next_h, next_c = step(obs.copy(), reset, state_h, state_c, legal)
        assert np.abs(q - out.q[0].numpy()).max() < 1e-5  # observed 5e-6, of values up to 8
        state_h, state_c = out.h[0].numpy(), out.c[0].numpy()
        assert np.abs(next_h - state_h).max() < 1e-5  # observed 2e-6
        assert np.abs(next_c - state_c).max() < 2e-5  # observed 8e-6, of values up to 13
        chosen |= set(action.tolist())
        world = worlds.step(action)
        obs, legal, reset = world.obs, world.legal, world.first
        over |= bool(reset.any())
    worlds.close()
    assert over, "no episode ended"
    assert len(chosen) > 1, "only one action was ever taken"
    return steps * n


def with_torchscript(module: Any) -> Callable[..., Any]:
    def step(*given: Any) -> Any:
        out = module(*(None if v is None else torch.from_numpy(v) for v in given))
        return [v.detach().numpy() for v in out]

    return step


@pytest.mark.parametrize("name", WORLDS)
def test_torchscript_acts_as_townlet_does(name, tmp_path) -> None:
    a = agent(**WORLDS[name])
    export(a, tmp_path / "a.pt", member=1)
    module, _ = loaded(tmp_path / "a.pt")
    assert episodes(a, 1, 150, 16, with_torchscript(module)) == 2400
    assert "townlet::" not in str(module.inlined_graph)
    with pytest.raises(AssertionError):  # the other member is somebody else
        episodes(a, 0, 150, 16, with_torchscript(module))


def test_an_illegal_action_is_never_chosen_and_no_legal_one_means_all(tmp_path) -> None:
    a = agent()
    export(a, tmp_path / "a.pt")
    module, _ = loaded(tmp_path / "a.pt")
    obs, reset = torch.randn(64, a.network.obs_size), torch.ones(64, dtype=torch.bool)
    h, c = module.initial_state(64)
    q, free, _, _ = module(obs, reset, h, c)
    assert torch.equal(free, q.argmax(1))
    legal = torch.rand(64, 6) < 0.4
    legal[:8] = False
    action = module(obs, reset, h, c, legal)[1]
    assert torch.equal(action[:8], free[:8])
    some = legal.any(1)
    assert legal[some, action[some]].all()
    assert torch.equal(action[some], q.masked_fill(~legal, -torch.inf).argmax(1)[some])


def test_a_reset_row_forgets_and_another_does_not(tmp_path) -> None:
    a = agent()
    export(a, tmp_path / "a.pt")
    module, _ = loaded(tmp_path / "a.pt")
    obs, h, c = torch.randn(2, a.network.obs_size), torch.randn(2, 8), torch.randn(2, 8)
    mixed = module(obs, torch.tensor([True, False]), h, c)[0]
    fresh = module(obs, torch.tensor([False, False]), torch.zeros(2, 8), torch.zeros(2, 8))[0]
    kept = module(obs, torch.tensor([False, False]), h, c)[0]
    assert torch.equal(mixed, torch.stack((fresh[0], kept[1])))
    assert not torch.equal(kept, fresh)


ELSEWHERE = """
import json, sys
sys.modules["townlet"] = None  # importing it is an error
import numpy as np, torch
module = torch.jit.load("a.pt")
given = np.load("given.npz")
h, c = module.initial_state(given["obs"].shape[1])
actions = []
for obs, reset, legal in zip(given["obs"], given["reset"], given["legal"]):
    q, action, h, c = module(*map(torch.from_numpy, (obs, reset)), h, c, torch.from_numpy(legal))
    actions.append(action.numpy())
np.save("actions.npy", np.array(actions))
print(json.loads(module.metadata)["env"])
"""


def test_the_file_runs_in_a_process_without_townlet(tmp_path) -> None:
    a = agent()
    export(a, tmp_path / "a.pt")
    worlds = a.worlds(4)
    obs, legal = worlds.reset([1, 2, 3, 4])
    actor, reset, rows, want = GreedyActor(a.network, a.member(0), 4), np.ones(4, bool), [], []
    for _ in range(60):
        action = actor(obs, legal, reset)
        rows.append((obs, reset, legal))
        want.append(action)
        step = worlds.step(action)
        obs, legal, reset = step.obs, step.legal, step.first
    obs, reset, legal = (np.array(v) for v in zip(*rows, strict=True))
    np.savez(tmp_path / "given.npz", obs=obs, reset=reset, legal=legal)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == TOWN_ID
    assert np.array_equal(np.load(tmp_path / "actions.npy"), want)


def test_the_file_says_what_its_numbers_mean(tmp_path) -> None:
    a = agent(last_reward=True)
    export(a, tmp_path / "a.pt", member=1)
    module, facts = loaded(tmp_path / "a.pt")
    assert json.loads(module.metadata) == facts
    assert Config.from_dict(facts["config"]) == a.config
    assert (facts["env"], facts["env_steps"], facts["member"], facts["legal"]) == (TOWN_ID, 77, 1, True)
    assert facts["actions"] == ["up", "down", "left", "right", "interact", "wait"]
    assert sum(part["size"] for part in facts["observation"]) == facts["obs_size"] == a.network.obs_size
    assert facts["observation"][-1]["name"] == "observation['last reward']"
    export(agent(env="Clock-v0"), tmp_path / "b.pt")
    facts = loaded(tmp_path / "b.pt")[1]
    assert (facts["actions"], facts["legal"]) == (["0", "1"], False)
    assert "legal" not in facts["inputs"]


@pytest.mark.parametrize(
    ("name", "member", "message"),
    [("a.bin", 0, "expected a name that ends in .pt"), ("a.pt", 2, "member is 2; expected 0 to 1")],
)
def test_wrong_requests(name, member, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        export(agent(), tmp_path / name, member)
    assert list(tmp_path.iterdir()) == []


def test_onnx_names_the_packages_that_are_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match="pip install onnx onnxscript"):
        export(agent(), tmp_path / "a.onnx")


@pytest.mark.parametrize("name", WORLDS)
def test_onnx_acts_as_townlet_does(name, tmp_path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    a = agent(**WORLDS[name])
    export(a, tmp_path / "a.onnx", member=1)
    session = runtime.InferenceSession(str(tmp_path / "a.onnx"))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["townlet"])
    assert facts["member"] == 1
    names = [i.name for i in session.get_inputs()]
    assert names == ["obs", "reset", "h", "c", *["legal"] * facts["legal"]]

    def step(*given: Any) -> Any:
        return session.run(None, dict(zip(names, given, strict=False)))

    assert episodes(a, 1, 150, 16, step) == 2400


def test_the_command(tmp_path, capsys) -> None:
    folder, file = str(tmp_path / "run"), str(tmp_path / "a.pt")
    assert main(["train", *arguments(tiny(total_steps=80, final_eval_episodes=0)), "--run-dir", folder]) == 0
    capsys.readouterr()
    assert main(["export", folder, file, "--member", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{file}: {TOWN_ID} after 80 steps, member 1" in printed
    assert "actions up, down" in printed
    module, facts = loaded(tmp_path / "a.pt")
    assert facts["env_steps"] == 80
    assert episodes(Agent.load(folder), 1, 150, 4, with_torchscript(module)) == 600
    assert main(["export", folder, str(tmp_path / "a.zip")]) == 2
    assert "expected a name that ends in .pt" in capsys.readouterr().err
