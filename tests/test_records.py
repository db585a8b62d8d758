"""What metrics.csv holds, and that its documentation says so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from townlet.records import COLUMNS, MEANINGS, Means

REPOSITORY = Path(__file__).parent.parent


def test_the_documentation_explains_every_column():
    text = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
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
