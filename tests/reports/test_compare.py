"""townlet compare: hand-computed intervals of differences, and silence where nothing can be said."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from pages import check_self_contained
from PIL import Image

from townlet.cli import main
from townlet.reports.compare import Score, compare_runs, welch
from townlet.settings.config import Config

EVIL = "<script>alert(1)&"


def make(folder, finals=None, evals=(), train=(), *, seconds=10.0, **settings):
    """A run folder; per member: ``finals`` of the final evaluation, ``evals`` and ``train`` of the last record."""
    members = len(finals or evals or train or [0])
    folder.mkdir()
    config = Config(env="CartPole-v1", members=members, total_steps=200, num_envs=1, learning_starts=60, **settings)
    config.to_yaml(folder / "config.yaml")
    with open(folder / "metrics.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "member", "seconds", "updates", "train_return", "eval_return"])
        for p in range(members):
            rows.writerow([100, p, seconds / 2, 5, 0.5 if train else "", 0.25 if evals else ""])
        for p in range(members):
            rows.writerow([200, p, seconds, 9, train[p] if train else "", evals[p] if evals else ""])
    if not finals:
        return folder
    ends = {"low": finals[0] - 2, "high": finals[0] + 2} if members == 1 else {"low": None, "high": None}
    policies = {"random": {"mean": 0.0, "low": 0.0, "high": 0.0, "episodes": 64}}
    policies["trained"] = {"mean": sum(finals) / members, **ends, "episodes": 64 * members}
    if members > 1:
        own = {"low": 0.0, "high": 1.0, "episodes": 64}
        policies |= {f"  member {p} lr=0.1": {"mean": v, **own} for p, v in enumerate(finals)}
    (folder / "summary.json").write_text(json.dumps({"env_steps": 200, "finished": True, "policies": policies}))
    return folder


def test_the_difference_has_welchs_interval(tmp_path):
    """Means 2 and 7, variances of the means 1/3 and 5/3; freedom 4.075 -> 4, t = 2.776: half-width 2.776 * sqrt(2)."""
    a, b = make(tmp_path / "a", [1.0, 2.0, 3.0]), make(tmp_path / "b", [4.0, 6.0, 8.0, 10.0])
    found = compare_runs([a, b])
    (difference,) = found.differences
    assert (difference.run, difference.against, found.source) == ("b", "a", "final evaluation")
    assert difference.mean == pytest.approx(5.0)
    assert (difference.low, difference.high) == pytest.approx((5 - 2.776 * math.sqrt(2), 5 + 2.776 * math.sqrt(2)))
    assert difference.verdict == "b is higher"
    assert compare_runs([b, a]).differences[0].verdict == "a is lower"
    assert found.scores[0].low == pytest.approx(2 - 4.303 / math.sqrt(3))
    assert found.scores[0].over == "3 members"


def test_overlapping_runs_show_no_difference(tmp_path):
    found = compare_runs([make(tmp_path / "a", [1.0, 2.0, 3.0]), make(tmp_path / "b", [1.5, 2.0, 4.0])])
    assert found.differences[0].low < 0 < found.differences[0].high
    assert found.differences[0].verdict == "no difference shown"


def test_one_member_says_nothing_about_other_seeds(tmp_path):
    found = compare_runs(
        [make(tmp_path / "a", [1.0]), make(tmp_path / "b", [9.0]), make(tmp_path / "c", [8.0, 9.0, 10.0])]
    )
    assert all(math.isnan(d.low) for d in found.differences)
    assert found.differences[0].verdict.startswith("nothing can be said: one member only in a and b (train with")
    assert found.differences[1].verdict.startswith("nothing can be said: one member only in a (train with")
    assert found.scores[0].over == "64 episodes"
    assert (found.scores[0].low, found.scores[0].high) == (-1.0, 3.0)
    assert found.to_dict()["differences"][0]["low"] is None
    assert "nothing can be said" in found.text()


def test_two_members_are_called_what_they_are(tmp_path):
    found = compare_runs([make(tmp_path / "a", [1.0, 2.0]), make(tmp_path / "b", [1000.0, 1001.0])])
    assert found.differences[0].verdict == "b is higher (two members: the interval is wide by nature)"


def test_equal_members_have_no_spread():
    a, b = (Score(np.full(3, v), v, v, v, "3 members") for v in (1.0, 2.0))
    found = welch("a", a, "b", b)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_score_is_of_a_kind_that_all_runs_have(tmp_path):
    final = make(tmp_path / "a", [1.0, 2.0], evals=[3.0, 4.0], train=[5.0, 6.0])
    evaluated = make(tmp_path / "b", evals=[3.0, 5.0], train=[7.0, 8.0])
    training = make(tmp_path / "c", train=[9.0, 11.0])
    assert [s.mean for s in compare_runs([final, evaluated]).scores] == [3.5, 4.0]
    assert compare_runs([final, evaluated]).source == "last greedy evaluation"
    found = compare_runs([final, training, evaluated])
    assert (found.source, [s.mean for s in found.scores]) == ("training episodes", [5.5, 10.0, 7.5])
    assert [curve.mean.tolist() for curve in found.curves()] == [[0.5, 5.5], [0.5, 10.0], [0.5, 7.5]]


def test_settings_that_differ_and_no_others(tmp_path):
    a = make(tmp_path / "a", [1.0, 2.0], lr=1e-3, n_step=3)
    b = make(tmp_path / "b", [1.0, 2.0], lr=[1e-3, 2e-3], n_step=7)
    found = compare_runs([a, b])
    assert found.settings == {"lr": [0.001, [0.001, 0.002]], "n_step": [3, 7]}
    assert found.notes == ["Members of b differ in lr: its interval is over that too."]


def test_copied_members_and_unequal_lengths_are_noted(tmp_path):
    a, b = make(tmp_path / "a", [1.0, 2.0], train=[1.0, 2.0]), make(tmp_path / "b", train=[1.0, 2.0], pbt_every=50)
    text = (a / "summary.json").read_text().replace('"env_steps": 200', '"env_steps": 300')
    (a / "summary.json").write_text(text)
    notes = compare_runs([a, b]).notes
    assert "The runs have made different numbers of steps." in notes
    assert any("Members of b are copied from each other" in note for note in notes)


def test_different_worlds_have_no_difference(tmp_path):
    a, b = make(tmp_path / "a", [1.0, 2.0]), make(tmp_path / "b", [1.0, 2.0])
    (b / "config.yaml").write_text((b / "config.yaml").read_text().replace("CartPole-v1", "Other-v0"))
    found = compare_runs([a, b])
    assert found.differences == []
    assert found.notes == ["The worlds differ, so no difference of scores is computed."]
    assert found.settings == {"env": ["CartPole-v1", "Other-v0"]}


def test_the_command_prints_and_writes_the_same_numbers(tmp_path, capsys):
    a, b = make(tmp_path / EVIL, [1.0, 2.0, 3.0], n_step=3), make(tmp_path / "b", [4.0, 6.0, 8.0, 10.0], n_step=7)
    page, figures, picture = (tmp_path / name for name in ("c.html", "c.json", "c.png"))
    assert (
        main(["compare", str(a), str(b), "--html", str(page), "--json", str(figures), "--picture", str(picture)]) == 0
    )
    printed = capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert found["runs"][1]["score"]["per_member"] == [4.0, 6.0, 8.0, 10.0]
    assert (found["runs"][0]["steps_per_s"], found["runs"][0]["seconds"]) == (60.0, 10.0)
    assert found["differences"][0]["low"] == pytest.approx(1.074, abs=1e-3)
    document = check_self_contained(page.read_text())
    for text in ("+5", "1.074 to 8.926", "b is higher", "4 members", "10.0 s", "60"):
        assert text in printed
        assert any(text in cell for row in document.rows for cell in row), text
    assert document.row("n_step") == ["n_step", "3", "7"]
    assert EVIL in "".join(document.text)
    with Image.open(picture) as image:
        assert image.width > 800


def test_wrong_input_is_said(tmp_path, capsys):
    a, b = make(tmp_path / "a", [1.0]), make(tmp_path / "b", [2.0])
    (tmp_path / "empty").mkdir()
    make(tmp_path / "fresh")
    (tmp_path / "fresh" / "metrics.csv").unlink()
    for argv, message in (
        ([a], "folders has length 1; expected at least 2 runs to compare"),
        ([a, tmp_path / "a" / ".." / "a"], "is the same run as"),
        ([a, tmp_path / "empty"], "empty is no run folder; expected one with config.yaml in it"),
        ([a, tmp_path / "fresh"], "of all runs: final evaluation is missing in fresh; last greedy"),
        ([a, b, "--json", tmp_path / "none" / "x.json"], "No such file or directory"),
    ):
        assert main(["compare", *map(str, argv)]) == 2
        assert message in capsys.readouterr().err
