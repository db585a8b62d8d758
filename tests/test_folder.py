"""The settings in a run folder, read by everybody in the same way, and numbers as text."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

import townlet.agent
import townlet.evaluate
import townlet.memory
import townlet.report
from townlet.runs.folder import read_settings
from townlet.runs.results import Results
from townlet.serve.runs import Run
from townlet.settings import plain_yaml
from townlet.settings.config import Config
from townlet.support import text


def test_settings_are_read_as_they_were_written(tmp_path):
    config = Config(lr=(1e-3, 2e-3), members=2, env_args={"level": "hamlet"}, curriculum=("0 size=5",))
    config.to_yaml(tmp_path / "config.yaml")
    settings = read_settings(tmp_path)
    assert settings == config.to_dict()
    assert Results.load(tmp_path).config == Run("r", tmp_path).config() == settings
    assert Config.from_dict(settings) == config
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("of_another_version: 3\n")
    assert read_settings(tmp_path)["of_another_version"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n", r"config.yaml holds list; expected 'setting: value' lines"),
        (b"", r"config.yaml holds NoneType; expected"),
        (b"a: [1", r"config.yaml is not YAML \(.*\); expected 'setting: value' lines"),
        (b"\xff\xfe", r"config.yaml is not YAML"),
        (b"a: &a [1]\nb: *a\n", r"config.yaml is not YAML \(aliases are not supported"),
        (b"a: 1\na: 2\n", r"config.yaml is not YAML \('a' is given twice"),
        (b"#" * (plain_yaml.LARGEST + 1), r"config.yaml is not YAML \(.*larger than 1,048,576 bytes"),
    ],
)
def test_what_holds_no_settings_says_so_to_a_report_and_is_empty_for_the_server(tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (read_settings, Results.load):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    assert Run("r", tmp_path).config() == {}


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone is no run folder; expected one with config.yaml in it"):
        read_settings(tmp_path / "gone")
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="is no run folder"):  # and nobody waits for a writer
        read_settings(tmp_path)


def test_numbers_as_text():
    assert [text.number(v) for v in (0.0, 1.23456, 9999, 12_345, 1.5e6, -2e9, math.nan, math.inf)] == [
        "0", "1.235", "9999", "12.35k", "1.5M", "-2G", "-", "-"
    ]  # fmt: skip
    assert [text.duration(v) for v in (1, 119.96, 120, 7199, 7200)] == [
        "1.0 s",
        "120.0 s",
        "2.0 min",
        "120.0 min",
        "2.0 h",
    ]
    assert [text.clock(v) for v in (0.4, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
    assert text.clock(math.inf) == "unknown time"
    assert text.interval(1.0, 20_000.0) == "1 to 20k"
    assert [text.interval(*ends) for ends in ((None, 1.0), (1.0, None), (math.nan, 1.0), (-math.inf, math.inf))] == [
        "-"
    ] * 4
    assert text.interval(None, None, "unknown") == "unknown"


def test_the_public_addresses_lead_to_the_same_things():
    from townlet.evaluation import agent, memory, play, table
    from townlet.training import finish

    assert townlet.agent.Agent is townlet.report.Agent is agent.Agent
    assert (townlet.report.compare, townlet.report.finish) == (table.compare, finish.finish)
    assert (townlet.memory.probe, townlet.memory.MemoryProbe) == (memory.probe, memory.MemoryProbe)
    assert (townlet.evaluate.evaluate, townlet.evaluate.GreedyActor) == (play.evaluate, play.GreedyActor)
    for face in (townlet.agent, townlet.evaluate, townlet.memory, townlet.report):
        assert all(hasattr(face, name) for name in face.__all__)


@pytest.mark.parametrize("module", ["evaluate", "agent", "memory"])
def test_evaluation_brings_no_training_along(module):
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
