"""townlet serve reads metrics.csv: curves with intervals, downsampled, as the file grows, whatever is in it."""

from __future__ import annotations

import numpy as np
import pytest

from townlet.evaluate import mean_interval
from townlet.runs.metrics import Metrics


def write_rows(path, records, members=2, header="step,member,loss,eval_return"):
    """loss = step + member; eval_return only every fourth record."""
    with open(path, "w", newline="") as file:
        file.write(header + "\r\n")
        append(file, range(records), members)


def append(file, records, members=2):
    for i in records:
        for p in range(members):
            file.write(f"{10 * i},{p},{10 * i + p},{i if i % 4 == 0 else ''}\r\n")


def test_a_curve_is_mean_and_interval_over_members(tmp_path):
    with open(tmp_path / "m.csv", "w") as file:
        file.write("step,member,loss\n0,0,1.0\n0,1,2.0\n0,2,6.0\n10,0,4\n10,1,\n10,2,6\n20,0,\n20,1,\n20,2,\n")
    metrics = Metrics(tmp_path / "m.csv")
    metrics.refresh()
    curve = metrics.curve("loss", 100)
    assert curve["x"] == [0, 10]  # nobody knows the loss at 20
    assert curve["members"] == [[1, 4], [2, None], [6, 6]]
    for i, values in enumerate(([1, 2, 6], [4, 6])):
        mean, half = mean_interval(np.array(values))
        assert curve["mean"][i] == pytest.approx(mean)
        assert [curve["low"][i], curve["high"][i]] == pytest.approx([mean - half, mean + half], rel=1e-6)
    assert metrics.last("loss") == 5.0
    assert metrics.curve("nothing", 100) is None


def test_downsampling_is_exact(tmp_path):
    write_rows(tmp_path / "m.csv", 1000)
    metrics = Metrics(tmp_path / "m.csv")
    metrics.refresh()
    whole, curve = metrics.curve("loss", 1000), metrics.curve("loss", 300)
    assert (whole["together"], curve["together"]) == (1, 4)
    assert whole["x"] == [10 * i for i in range(1000)]
    assert curve["x"] == [10 * (4 * j + 1.5) for j in range(250)]
    assert curve["members"] == [[x + p for x in curve["x"]] for p in (0, 1)]
    assert curve["mean"] == [x + 0.5 for x in curve["x"]]
    sparse = metrics.curve("eval_return", 300)  # 250 values: none is averaged away
    assert sparse["x"] == [40 * j for j in range(250)]
    assert sparse["members"][0] == [4 * j for j in range(250)]
    with open(tmp_path / "m.csv", "a", newline="") as file:
        append(file, range(1000, 1011))
    metrics.refresh()
    grown = metrics.curve("loss", 300)
    assert grown["x"][:252] == [*curve["x"], 10 * (1000 + 1.5), 10 * (1004 + 1.5)]
    assert grown["x"][252:] == [10 * (1008 + 1.0)]  # the last one is the mean of what there is
    assert len(metrics.curve("loss", 2)["x"]) <= 2


def test_metrics_are_read_as_they_grow(tmp_path, monkeypatch):
    path = tmp_path / "m.csv"
    metrics = Metrics(path)
    metrics.refresh()
    assert metrics.curve("loss", 10) is None  # there is no file
    write_rows(path, 3)
    metrics.refresh()
    read, take = [], metrics._take
    monkeypatch.setattr(metrics, "_take", lambda text: (read.append(text), take(text)))
    before = metrics.version
    metrics.refresh()
    assert read == []
    assert metrics.version == before
    with open(path, "a", newline="") as file:
        append(file, [3])
        file.write("40,0,4")
        file.flush()
        metrics.refresh()
        assert read == [b"30,0,30,\r\n30,1,31,\r\n"]
        assert metrics.curve("loss", 10)["x"] == [0, 10, 20, 30]  # the cut line waits
        assert metrics.version != before
        file.write("0,\r\n")
        file.flush()
        metrics.refresh()
        assert metrics.curve("loss", 10)["members"][0] == [0, 10, 20, 30, 40]
    assert metrics.unreadable == 0


def test_a_resumed_run_that_drops_rows_is_read_anew(tmp_path):
    path = tmp_path / "m.csv"
    write_rows(path, 50)
    metrics = Metrics(path)
    metrics.refresh()
    with open(path, "w", newline="") as file:  # back to record 20, and on beyond the old end before anybody looked
        file.write("step,member,loss,eval_return\r\n")
        append(file, range(20))
        file.writelines(f"{10 * i},{p},7.5,\r\n" for i in range(20, 80) for p in (0, 1))
    metrics.refresh()
    curve = metrics.curve("loss", 100)
    assert curve["mean"] == [10 * i + 0.5 for i in range(20)] + [7.5] * 60
    path.unlink()
    metrics.refresh()
    assert metrics.curve("loss", 100) is None


@pytest.mark.parametrize(
    ("damage", "unreadable"),
    [
        ("30,0,1.0\r\n", 1),  # too few fields
        ("30,0,1.0,2,3\r\n", 1),
        ("30,0,abc,\r\n", 1),
        ("30,-1,1.0,\r\n", 1),
        ("30,1000000,1.0,\r\n", 1),  # no member; and no table of a million either
        ("nan,0,1.0,\r\n", 1),
        ("30,0.5,1.0,\r\n", 1),
        ("\x00\x00\xff\xfe\r\n\r\n", 2),
        ("step,member,loss,eval_return\r\n", 1),
    ],
)
def test_damaged_lines_are_left_out(tmp_path, damage, unreadable):
    path = tmp_path / "m.csv"
    write_rows(path, 3)
    with open(path, "a", newline="") as file:
        file.write(damage)
        append(file, [4])
    metrics = Metrics(path)
    metrics.refresh()
    assert metrics.unreadable == unreadable
    curve = metrics.curve("loss", 10)
    assert curve["x"] == [0, 10, 20, 40]
    assert curve["members"] == [[0, 10, 20, 40], [1, 11, 21, 41]]


def test_values_that_are_not_finite_are_not_drawn(tmp_path):
    (tmp_path / "m.csv").write_text("step,member,loss\n0,0,inf\n0,1,1\n10,0,nan\n10,1,-inf\n20,0,1e400\n20,1,3\n")
    metrics = Metrics(tmp_path / "m.csv")
    metrics.refresh()
    assert metrics.curve("loss", 10)["mean"] == [1, 3]
