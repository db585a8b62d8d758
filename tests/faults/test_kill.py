"""SIGKILL during training, thirty times and at every file operation: nothing is lost, nothing is left behind.

What dies is a child of kills.py, which imports Townlet once and forks; see there for the moments.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import HELPERS, ROOT
from trees import same

from townlet.runs import checkpoint

TOWN, CLOCK, EVERY = "townlet/Town-v0=30", "Clock-v0=8", "townlet/Town-v0=every"
SEED = 5


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each job."""
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HELPERS / "kills.py"), str(folder), str(SEED), TOWN, CLOCK, EVERY]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return {job: folder / job.replace("/", "-") for job in (TOWN, CLOCK, EVERY)}


def deaths(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "deaths.json").read_text())


def runs(folder: Path) -> list[Path]:
    """The runs that were killed, all of them finished since."""
    return [p for p in folder.iterdir() if p.is_dir() and p.name != "straight"]


def is_time(column: str) -> bool:
    return column == "seconds" or column.endswith("_s")


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without times."""
    text = (run / "metrics.csv").read_text()
    assert text.endswith("\n")
    return [{k: v for k, v in row.items() if not is_time(k)} for row in csv.DictReader(text.splitlines())]


def summary(run: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((run / "summary.json").read_text()).items() if not k.startswith("seconds")}


def tree(path: Path) -> dict[str, Any]:
    """A checkpoint without the name of the run."""
    out = checkpoint.read_file(path)
    return {**out, "config": {**out["config"], "run_dir": None}}


def state(run: Path) -> dict[str, Any]:
    return tree(checkpoint.latest(run / "checkpoints"))


def agent(run: Path) -> dict[str, Any]:
    return tree(run / "agent.ckpt")


def files(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name}


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by tag, without times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not is_time(tag.split("/")[1])]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_as_if_never_killed(run: Path, straight: Path) -> None:
    assert same(state(run), state(straight))
    assert rows(run) == rows(straight)
    assert summary(run) == summary(straight)
    assert summary(run)["finished"]
    assert files(run) == files(straight)
    assert same(agent(run), agent(straight))
    for name in files(straight) & {"lineage.csv"}:
        assert (run / name).read_bytes() == (straight / name).read_bytes()


def test_thirty_kills_leave_the_run_as_if_it_had_never_been_killed(killed: dict[str, Path]) -> None:
    folder = killed[TOWN]
    died = deaths(folder)
    assert len(died) == 30
    torn = [d for d in died if any(name.startswith(".step_") for name in d["half_written"])]
    assert torn, "no kill fell into the writing of a checkpoint"
    saved = [(int(d["run"]), d["saved"]) for d in died]
    assert saved == sorted(saved), "a death cost a checkpoint"
    print(f"seed {SEED}: {len(torn)} of 30 kills fell into the writing of a checkpoint")
    straight = folder / "straight"
    steps = [(r["step"], r["member"]) for r in rows(straight)]
    assert steps == sorted(set(steps), key=lambda s: (int(s[0]), s[1]))
    assert (straight / "lineage.csv").read_text().count("\n") > 1, "members were copied"
    shown = scalars(straight)
    assert len(shown) > 20
    assert len(runs(folder)) >= 1
    for run in runs(folder):
        assert_as_if_never_killed(run, straight)
        assert scalars(run) == shown


def test_a_kill_at_any_file_operation_leaves_the_run_as_if_it_had_never_been_killed(killed: dict[str, Path]) -> None:
    folder = killed[EVERY]
    operations = [d["where"] for d in deaths(folder)]
    written = ("config.yaml", "metrics.csv", "tfevents", "status.json", ".ckpt", "agent.ckpt", "summary.json")
    for name in written:
        assert any(name in operation for operation in operations), name
    assert any(o.startswith("os.remove") and o.endswith(".ckpt") for o in operations), "an old checkpoint goes"
    assert len(runs(folder)) == len(operations)
    for run in runs(folder):
        assert_as_if_never_killed(run, folder / "straight")


def test_a_world_that_cannot_be_saved_loses_no_run(killed: dict[str, Path]) -> None:
    folder = killed[CLOCK]
    straight = folder / "straight"
    assert len(deaths(folder)) == 8
    for run in runs(folder):
        assert [(r["step"], r["member"]) for r in rows(run)] == [(r["step"], r["member"]) for r in rows(straight)]
        updates = [int(r["updates"]) for r in rows(run)]
        assert updates == sorted(updates)
        for name in ("env_steps", "updates", "finished", "stopped_by"):
            assert summary(run)[name] == summary(straight)[name]
        assert files(run) | {"lineage.csv"} == files(straight) | {"lineage.csv"}
        mine, expected = state(run), state(straight)
        assert mine["restarts"] > 0
        assert not same(mine["obs"], expected["obs"])  # the control: episodes were cut, so this is another course
        assert mine["env_steps"] == expected["env_steps"]
        assert all(value.isfinite().all() for value in mine["population"]["online"].values())
