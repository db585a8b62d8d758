"""What metrics.csv holds, that its documentation says so, and that all who read it read the same."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT

from townlet.runs.metrics import COLUMNS, MEANINGS, Metrics, Records, read_metrics
from townlet.runs.results import Results
from townlet.settings.config import Config
from townlet.training.statistics import Means


def test_the_documentation_explains_every_column():
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M)
    assert table == list(MEANINGS.items())
    assert [name for name, _ in table] == COLUMNS


def test_means_are_over_the_calls_since_the_last_drain():
    means = Means()
    assert means.drain() == {}
    for k in (1.0, 3.0):
        means.add({"a": torch.tensor([k, 10 * k]), "b": torch.tensor([-k, 0.0])})
    other = Means()
    other.load_state_dict(means.state_dict(), torch.device("cpu"))
    other.add({"a": torch.tensor([5.0, 5.0]), "b": torch.tensor([1.0, 1.0])})
    got = means.drain()
    assert {k: v.tolist() for k, v in got.items()} == {"a": [2.0, 20.0], "b": [-2.0, 0.0]}
    assert other.drain()["a"] == pytest.approx(np.array([3.0, 15.0]))
    assert means.drain() == {}
    means.add({"a": torch.tensor([7.0, 7.0]), "b": torch.tensor([7.0, 7.0])})
    assert means.drain()["b"].tolist() == [7.0, 7.0]


def test_sums_of_other_names_are_not_mixed():
    """A checkpoint of a version that knew other metrics: what it had summed is dropped."""
    means = Means()
    means.load_state_dict({"count": 3, "sums": {"a": torch.tensor([9.0])}}, torch.device("cpu"))
    means.add({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    assert {k: v.tolist() for k, v in means.drain().items()} == {"a": [1.0], "b": [2.0]}


def written(folder: Path) -> Path:
    """A run folder with three records of two members, as a run writes them."""
    Config(members=2).to_yaml(folder / "config.yaml")
    records = Records(folder, tensorboard=False)
    for step in (100, 200, 12_345_678):
        records.add(step, {"seconds": step / 7}, [{"loss": step + p / 3, "eval_return": math.nan} for p in (0, 1)])
    records.close()
    return folder / "metrics.csv"


def same_everywhere(path: Path) -> list[float]:
    """The steps of the rows, after a look at them through every reader."""
    rows, metrics, results = read_metrics(path), Metrics(path), Results.load(path.parent)
    metrics.read()
    for name in metrics.columns:
        table = metrics.values[metrics.columns.index(name)]
        assert np.array_equal(results.values[name], table, equal_nan=True)
        for row in rows:
            value = table[np.flatnonzero(metrics.steps == row["step"])[0], int(row["member"])]
            assert np.array_equal(value, row[name], equal_nan=True)
    assert sorted({row["step"] for row in rows}) == metrics.steps.tolist() == results.steps.tolist()
    return [row["step"] for row in rows]


def test_all_readers_read_the_same(tmp_path):
    path = written(tmp_path)
    assert same_everywhere(path) == [100, 100, 200, 200, 12_345_678, 12_345_678]
    assert read_metrics(path)[1]["loss"] == pytest.approx(100 + 1 / 3, rel=1e-6)  # seven digits are written
    with open(path, "a") as file:
        file.write("12345679,0," + "," * (len(COLUMNS) - 3))  # a whole row, but for the end of its line
    assert len(same_everywhere(path)) == 6
    with open(path, "a") as file:
        file.write("\r\n12345680,x" + "," * (len(COLUMNS) - 2) + "\n12345681,0,1\n")
    assert same_everywhere(path)[6:] == [12_345_679]  # the row is whole now; the lines after it are not of this file


def test_a_resumed_run_keeps_the_rows_up_to_its_step_as_they_are(tmp_path):
    path = written(tmp_path)
    text = path.read_text()
    Records(tmp_path, step=200, tensorboard=False).close()
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:5])
    path.write_text(text[:-9])  # torn
    Records(tmp_path, step=12_345_678, tensorboard=False).close()
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:6])


def test_the_last_record_is_the_last_whole_one_as_it_is_written(tmp_path):
    path = written(tmp_path)
    last = Results.load(tmp_path).last
    assert [(row["step"], row["member"], row["eval_return"]) for row in last] == [
        ("12345678", "0", ""),
        ("12345678", "1", ""),
    ]
    assert list(last[0]) == COLUMNS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # a record without its second member
    assert [row["step"] for row in Results.load(tmp_path).last] == ["200", "200"]
    path.write_text(lines[0])
    assert Results.load(tmp_path).last == []


def test_a_file_that_cannot_be_read_is_said_by_who_must_read_it(tmp_path):
    written(tmp_path)
    metrics = Metrics(tmp_path / "none.csv")
    metrics.refresh()  # of a page that looks every second: an empty one
    assert metrics.steps.size == 0
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        metrics.read()
    (tmp_path / "metrics.csv").unlink()
    assert Results.load(tmp_path).steps.size == 0  # a run before its first record
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        Results.load(tmp_path)
