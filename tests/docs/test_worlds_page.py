"""docs/start/own-world.md keeps its word: its world of ten lines runs as it stands, and takes a memory to learn."""

from __future__ import annotations

import re
import sys

import pytest
from paths import ROOT

from townlet.envs.make import make_worlds
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

PAGE = (ROOT / "docs" / "start" / "own-world.md").read_text(encoding="utf-8")


@pytest.fixture
def signpost(tmp_path, monkeypatch):
    """The page's file in the current folder -> the id of its command."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (name,) = re.findall(r"`(\w+\.py)`:\n\n```python", PAGE)
    body = [line for line in code.partition("class ")[2].partition("\n\n\n")[0].splitlines() if line]
    assert len(body) == 10
    (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return re.findall(r"townlet train --env (\S+)", PAGE)[0]


def test_the_world_of_ten_lines_is_learned_by_remembering(signpost, one_thread):
    settings = {
        "env": signpost, "total_steps": 10_000, "num_envs": 16, "learning_starts": 1_000, "capacity": 10_000,
        "seq_len": 10, "burn_in": 0, "batch_size": 32, "replay_ratio": 20.0, "encoder": (32,), "hidden_size": 32,
        "head_size": 32, "gamma": 0.95, "lr": 2e-3, "lr_decay_steps": 0, "sync_every": 20, "epsilon_end": 0.1,
        "epsilon_decay_steps": 5_000, "epsilon_ladder": 0.0, "eval_every": 0,
    }  # fmt: skip
    scores = []
    for memory in (True, False):
        run = Trainer(Config(**settings, memory=memory))
        run.train()
        scores.append(run.evaluate().returns.mean())
    assert scores[0] > 0.9  # seen with seeds 0, 1, 2: 1.0
    assert scores[1] < 0.7  # the control, half by chance: 0.50, 0.55, 0.44
    assert make_worlds(signpost, 2).layout[0].kind == "one-hot"
