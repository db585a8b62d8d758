"""The settings in a run folder, read by everybody in the same way."""

from __future__ import annotations

import os

import pytest

from townlet.runs.folder import read_settings
from townlet.runs.results import Results
from townlet.serve.runs import Run
from townlet.settings import plain_yaml
from townlet.settings.config import Config


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
