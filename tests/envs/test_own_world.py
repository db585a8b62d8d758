"""A world in a file of the current folder: it opens by ``module:ID``, and whoever names it otherwise is told how."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import pytest

from townlet.envs.make import make_worlds

SOURCE = """
import gymnasium
from gymnasium.spaces import Discrete

class Mine(gymnasium.Env):
    observation_space, action_space = Discrete(3), Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 1, 1.0, True, False, {}

gymnasium.register("Mine-v0", Mine)
"""
IN_ITS_FOLDER = "start in the folder that holds my_world.py, and name it without .py"
AS_MODULE = "MODULE:ID"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my_world.py in it; the registry and the modules are as before afterwards."""
    (tmp_path / "my_world.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_world", raising=False)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry := dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", registry)
    return tmp_path


def refusal(env_id: str) -> str:
    with pytest.raises(ValueError) as refused:
        make_worlds(env_id, 2)
    return str(refused.value)


def test_it_opens_in_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    worlds = make_worlds("my_world:Mine-v0", 2)
    assert (worlds.num_envs, worlds.obs_size, worlds.n_actions) == (2, 3, 2)
    sys.modules.pop("my_world")


def test_elsewhere_and_with_py_the_folder_is_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert IN_ITS_FOLDER in refusal("my_world:Mine-v0")
    monkeypatch.chdir(folder)
    assert IN_ITS_FOLDER in refusal("my_world.py:Mine-v0")
    sys.modules.pop("my_world", None)


def test_without_the_module_its_form_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert AS_MODULE in refusal("Mine-v0")
    assert AS_MODULE not in refusal("my_world:Other-v0")
    sys.modules.pop("my_world", None)


def test_a_package_that_the_world_needs_is_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls: what is missing is not the world's own file, so its folder would not help."""
    (folder / "my_world.py").write_text("import no_such_package", encoding="utf-8")
    monkeypatch.chdir(folder)
    text = refusal("my_world:Mine-v0")
    assert "pip install no_such_package" in text
    assert "start in the folder" not in text
    sys.modules.pop("my_world", None)
