"""Means and intervals over members, and members' names, in everything a run shows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from worlds import clock

from townlet.envs.adapter import WorldStep
from townlet.evaluate import Evaluation
from townlet.report import Agent, Report, Row, finish
from townlet.runs.metrics import read_metrics
from townlet.training.progress import score_text
from townlet.training.statistics import EpisodeStatistics
from townlet.training.trainer import Trainer

LR = {"lr": np.array([1e-4, 1e-3, 1e-2]), "gamma": np.full(3, 0.9)}


def step(rewards):
    """One step of all environments: an episode of one step ended with each reward, none where it is NaN."""
    reward = np.array(rewards, dtype=np.float32)
    over, n = ~np.isnan(reward), len(reward)
    nothing = np.zeros((n, 1), np.float32)
    return WorldStep(nothing, np.nan_to_num(reward), over, np.zeros(n, bool), None, None, over)


def played(members, *rounds):
    episodes = EpisodeStatistics(members, len(rounds[0]) // members)
    for rewards in rounds:
        episodes.add(step(rewards))
    return episodes


def test_the_recent_score_is_a_members_own():
    none = math.nan
    episodes = played(3, [1, 3, 5, 5, none, none])
    assert episodes.recent[:2].tolist() == [2.0, 5.0]
    assert math.isnan(episodes.recent[2])
    episodes.add(step([12, 12, none, 5, 7, none]))
    assert episodes.recent[0] == pytest.approx(2 * 0.98**2 + 12 * (1 - 0.98**2))
    assert episodes.recent[1:].tolist() == [5.0, 7.0]


def test_the_progress_line_has_mean_interval_and_the_best_members_name():
    episodes = played(3, [1, 1, 2, 2, 6, 6])
    # mean 3, standard deviation sqrt(7), half-width 4.303 sqrt(7 / 3) = 6.57
    assert score_text(episodes, None, LR) == "return 3 ± 6.6 (best 6, member 2 lr=0.01)"
    same = {name: np.full(3, 0.5) for name in LR}
    assert score_text(episodes, None, same) == "return 3 ± 6.6 (best 6, member 2)"
    scores = np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0]])
    evaluation = Evaluation(scores, np.ones((3, 2), np.int64), None, np.zeros((3, 2), bool))
    assert score_text(EpisodeStatistics(3, 2), evaluation, LR) == "greedy 2 ± 0"
    assert score_text(EpisodeStatistics(1, 2), None, {}) == ""
    assert score_text(played(1, [4, 4]), None, {}) == "return 4"


def test_the_table_names_hyper_parameters_where_they_differ(tmp_path):
    run = Trainer(clock(members=3, lr="log:1e-4:1e-2", run_dir=str(tmp_path / "run"), total_steps=80))
    run.train()
    report = finish(run)
    names = [row.name for row in report.rows]
    assert names[-3:] == ["  member 0 lr=0.0001", "  member 1 lr=0.001", "  member 2 lr=0.01"]
    trained = next(row for row in report.rows if row.name == "trained")
    assert trained.of_members
    assert trained.interval[0] == pytest.approx(np.mean([row.scores.mean() for row in report.rows[-3:]]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["hyper_parameters"] == {"lr": [1e-4, 1e-3, 1e-2]}
    assert "  member 2 lr=0.01" in summary["policies"]
    for path in (tmp_path / "run", tmp_path / "run" / "agent.ckpt"):
        assert Agent.load(path).hyper["lr"].tolist() == [1e-4, 1e-3, 1e-2]


def test_long_names_do_not_break_the_table():
    rows = [Row("a" * 60, np.ones((1, 2)), False), Row("b", np.ones((1, 2)), False)]
    lines = Report("return", rows, None).text().splitlines()
    assert len({len(line) for line in lines}) == 1


def test_metrics_hold_every_members_hyper_parameters(tmp_path):
    own = {"members": 2, "lr": (1e-3, 1e-2), "gamma": (0.8, 0.9), "lr_end": 0.1, "lr_decay_steps": 80}
    run = Trainer(clock(run_dir=str(tmp_path / "run"), **own))
    run.train()
    for row in read_metrics(tmp_path / "run" / "metrics.csv"):
        member = int(row["member"])
        assert (row["lr"], row["gamma"]) == ((1e-3, 0.8), (1e-2, 0.9))[member]
        assert (row["clip_norm"], row["epsilon_end"]) == (10.0, 0.05)


def test_events_hold_mean_and_interval_over_members(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(clock(members=3, lr="log:1e-4:1e-2", run_dir=str(tmp_path / "run"))).train()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    last = [row["loss"] for row in rows if row["step"] == rows[-1]["step"]]
    mean, low, high = (events.Scalars(f"learning/loss/{what}")[-1].value for what in ("mean", "low95", "high95"))
    assert mean == pytest.approx(np.mean(last), rel=1e-5)
    half = 4.303 * np.std(last, ddof=1) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert high - mean == pytest.approx(half, rel=1e-3)
    assert mean - low == pytest.approx(half, rel=1e-3)
    Trainer(clock(members=1, run_dir=str(tmp_path / "one"))).train()
    one = EventAccumulator(str(tmp_path / "one"))
    one.Reload()
    assert not [tag for tag in one.Tags()["scalars"] if tag.endswith(("mean", "low95", "high95"))]
