"""The examples run as they stand, each in a process of its own, and reach what they say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REACHED = {
    "custom_env": r"return after 24,000 steps: (0\.9\d|1\.00) \(chance 0\.5",
    "evaluate_checkpoint": r"The agent uses its memory: return goes from (0\.9\d*|1) to 0\.[3-6]",
    "own_learner": r"largest distance of a Q-value from the optimum, 3 members: 0\.(0|1[0-4])\d",
    "ppo_reset_lstm": r"right answers: [3-6]\d% in the first rollout, (9\d|100)% in the last",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_reaches_what_it_says(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(REACHED[path.stem], done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == [], "left something behind"


def test_every_example_says_what_it_is_and_checks_itself() -> None:
    assert {path.stem for path in EXAMPLES} == REACHED.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(examples/)" in readme
    for path in EXAMPLES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert f"Run it: python examples/{path.name}" in (ast.get_docstring(tree) or "")
        assert any(isinstance(node, ast.Assert) and node.msg for node in ast.walk(tree))
