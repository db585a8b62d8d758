"""The package as a whole: public names, build facts, what importing it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

import townlet
import townlet.agent
import townlet.evaluate
import townlet.memory
import townlet.report


def imported(code: str, **environment: str) -> str:
    """What `code` prints in a fresh interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_public_name_is_there() -> None:
    for name in townlet.__all__:
        assert getattr(townlet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        townlet.Nothing  # noqa: B018


def test_build_config_says_what_a_bug_report_needs() -> None:
    facts = townlet.build_config()
    assert facts["townlet"] == townlet.__version__
    assert facts["isa_in_use"] in facts["isa_levels"]
    assert "portable" in facts["isa_levels"]
    assert {"compiler", "compiler_version", "torch", "torch_cuda", "cuda_kernels", "threads", "python"} <= facts.keys()


def test_idle_threads_sleep_unless_the_user_wants_them_to_spin() -> None:
    code = "import townlet, os; print(os.environ['OMP_WAIT_POLICY'])"
    assert imported(code) == "PASSIVE"
    assert imported(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_a_forced_instruction_set_is_used_or_refused() -> None:
    code = "import townlet; print(townlet.build_config()['isa_in_use'])"
    assert imported(code, TOWNLET_ISA="portable") == "portable"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        imported(code, TOWNLET_ISA="mmx")
    assert "TOWNLET_ISA is 'mmx'; this CPU runs: " in failure.value.stderr


def test_torch_is_imported_where_a_command_needs_it_and_not_before() -> None:
    loaded = "import sys; print('torch' in sys.modules)"
    quick = f"from townlet import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    {loaded}"
    assert imported(quick).endswith("False")
    assert imported(f"import townlet; townlet.Config(); {loaded}") == "False"
    assert imported(f"import townlet.ops; {loaded}") == "True"  # control


def test_dir_shows_the_public_names_before_they_are_loaded() -> None:
    assert set(townlet.__all__) <= set(dir(townlet))


def test_the_public_addresses_lead_to_the_same_things() -> None:
    from townlet.evaluation import agent, memory, play, table
    from townlet.training import finish

    assert townlet.agent.Agent is townlet.report.Agent is agent.Agent
    assert (townlet.report.compare, townlet.report.finish) == (table.compare, finish.finish)
    assert (townlet.memory.probe, townlet.memory.MemoryProbe) == (memory.probe, memory.MemoryProbe)
    assert (townlet.evaluate.evaluate, townlet.evaluate.GreedyActor) == (play.evaluate, play.GreedyActor)
    for face in (townlet.agent, townlet.evaluate, townlet.memory, townlet.report):
        assert all(hasattr(face, name) for name in face.__all__)


@pytest.mark.parametrize("module", ["evaluate", "agent", "memory"])
def test_evaluation_brings_no_training_along(module: str) -> None:
    code = f"import sys, townlet.{module}; print(*(n for n in sys.modules if n.startswith('townlet.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert f"townlet.{module}" in loaded
    assert not {
        "townlet.training.trainer",
        "townlet.learning.learner",
        "townlet.reports.plots",
        "townlet.reports.html.run",
        "townlet.training.pbt",
    } & set(loaded)


def left_out(patterns: list[str], folder: Path) -> list[str]:
    """The package's files that patterns of .gitignore's kind leave out."""
    files = [str(f.relative_to(ROOT)) for f in (ROOT / "townlet").rglob("*.py*") if "__pycache__" not in f.parts]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".git" / "info" / "exclude").write_text("\n".join(patterns))
    command = ["git", "-C", str(folder), "check-ignore", "--no-index", "--stdin"]
    return subprocess.run(command, input="\n".join(files), capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_an_install_has_every_module(tmp_path: Path) -> None:
    """Scikit-build-core leaves out of a wheel what `sdist.exclude` and .gitignore name."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
    patterns = [*build["sdist"]["exclude"], *(ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    assert left_out(patterns, tmp_path / "kept") == []
    # control: the name of a folder without its root, which once left a whole wing out of every install
    assert "townlet/runs/checkpoint.py" in left_out([*patterns, "runs"], tmp_path / "spoilt")
