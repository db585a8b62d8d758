"""report.html: a whole document of one file, true to the run's numbers, safe with any name, written when it should."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from command_line import arguments
from pages import Document, check_self_contained
from PIL import Image
from worlds import clock, tiny

from townlet.cli import main
from townlet.evaluate import mean_interval
from townlet.report import Agent
from townlet.reports.html import run as report_html
from townlet.runs import sessions
from townlet.runs.checkpoint import CheckpointError
from townlet.runs.metrics import Curve
from townlet.runs.results import Results
from townlet.settings import config
from townlet.settings.config import Config
from townlet.support.ids import TOWN_ID
from townlet.support.text import number
from townlet.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny finished population, resumed once, with checkpoints and evaluations; its name is hostile."""
    folder = tmp_path_factory.mktemp("runs") / "<script>alert(1)&"
    settings = tiny(
        members=3,
        eval_every=40,
        checkpoint_every=80,
        lr=(1e-3, 2e-3, 3e-3),
        pbt_every=40,
        pbt_score="eval",
        total_steps=120,
    )
    assert main(["train", *arguments(settings), "--run-dir", str(folder)]) == 0
    assert main(["train", "--resume", str(folder), "--total-steps", "160"]) == 0
    return folder


def read(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("checkpoints", "*.ckpt", "events*"))
    return to


def test_it_is_one_whole_file_that_asks_for_nothing(finished):
    document = check_self_contained(read(finished))
    assert document.tags.count("svg") >= 14
    assert document.tags.count("h1") == 1
    assert {"title", "main", "h2", "table", "img"} <= set(document.tags)
    for bad in ('<img src="https://x/y.png" alt="elsewhere, far away">', "<script>1</script>", "<b>"):
        with pytest.raises(AssertionError):  # the control: what the check is for
            check_self_contained(read(finished).replace("</main>", f"{bad}</main>"))


def test_the_last_record_is_that_of_metrics_csv(finished):
    document = Document(read(finished))
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))[-3:]
    for name in rows[0]:
        assert document.row(name)[1:4] == [row[name] for row in rows], name


def test_the_curves_show_means_and_intervals_of_metrics_csv(finished):
    text = read(finished)
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for column in (
        "train_survival",
        "eval_survival",
        "q",
        "q_max",
        "target",
        "td_error",
        "grad_norm",
        "h_norm",
        "c_norm",
    ):
        steps = {row["step"] for row in rows if row[column]}
        assert steps, column
        for step in steps:
            mean, half = mean_interval(np.array([float(r[column]) for r in rows if r["step"] == step and r[column]]))
            known = f" ({number(mean - half)} to {number(mean + half)})" if half == half else ""
            shown = f"{number(mean)}{known}"
            assert f"{shown}</text>" in text, (column, step, shown)
    assert "999.9 (" not in text


def test_an_agent_whose_world_has_changed_is_refused(finished, monkeypatch):
    Agent.load(finished)
    monkeypatch.setitem(config.WORLD_DEFAULTS, TOWN_ID, {"knots": 4})
    with pytest.raises(CheckpointError, match=r"ckpt: encoder.0.weight is \[8, 179\]; expected \[8, 171\], as the obs"):
        Agent.load(finished)


def test_the_yardsticks_are_those_of_the_summary(finished):
    document = Document(read(finished))
    policies = json.loads((finished / "summary.json").read_text())["policies"]
    assert {"random", "bed-sitter", "trained", "scripted (sees everything)"} <= policies.keys()
    for name, row in policies.items():
        cells = document.row(name.strip())
        assert cells[1] == number(row["mean"])
        if row["low"] is not None:
            assert cells[2] == f"{number(row['low'])} to {number(row['high'])}"
    assert document.text[document.text.index("final survival") + 1] == number(policies["trained"]["mean"])
    images = [value for _, name, value in document.attributes if name == "alt"]
    assert len(images) == 1
    assert "share of episodes still alive" in images[0]


def test_settings_that_differ_are_marked_and_no_others(finished):
    document = Document(read(finished))
    marked = {row[0] for row, mark in zip(document.rows, document.marks, strict=True) if mark == "changed"}
    config, default = Config.from_yaml(finished / "config.yaml"), Config()
    differs = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(default, f.name)}
    assert marked == differs - {"run_dir"}
    assert document.row("hidden_size")[1:3] == ["8", str(Config().hidden_size)]


def test_every_start_has_its_facts(finished):
    document = Document(read(finished))
    assert document.row("from step") == ["from step", "0", "120"]
    noted = sessions.read_sessions(finished)
    assert [s["step"] for s in noted] == [0, 120]
    assert document.row("torch")[1:] == [s["facts"]["torch"] for s in noted]
    assert document.row("commit")[1] == sessions.commit()


def test_the_stages_of_the_curriculum_are_marked(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    settings = (folder / "config.yaml").read_text()
    assert "stage" not in " ".join(Document(read(folder)).text).replace("stages of training", "")
    stages = "curriculum: ['0 size=4', '100 size=5', '9999']"
    (folder / "config.yaml").write_text(re.sub(r"^curriculum: .*$", stages, settings, flags=re.M))
    report_html.write_report(folder)
    text = Document(read(folder)).text
    assert "stage 2" in text
    assert "stage 3" not in text  # not reached


def test_the_lineage_is_shown(finished):
    with open(finished / "lineage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    document = Document(read(finished))
    labels = [v for _, n, v in document.attributes if n == "aria-label" and v.startswith("Who copied whom")]
    assert rows
    assert len(labels) == 1
    for row in rows:
        copy = f"at step {number(float(row['step']))} member {row['member']} became a copy of member {row['parent']}"
        assert copy in labels[0]


def test_hostile_names_are_only_text(finished, tmp_path):
    assert "<script>alert(1)&" in "".join(Document(read(finished)).text)
    folder = copied(finished, tmp_path / "<b>x")
    settings = (folder / "config.yaml").read_text()
    evil = "<script>fetch(1)</script>"
    (folder / "config.yaml").write_text(
        settings.replace("env: townlet/Town-v0", f"env: '{evil}'") + f"\n'{evil}': '{evil}'\n"
    )
    (folder / "memory.json").write_text(json.dumps({"sentence": f'{evil}"'}))
    summary = json.loads((folder / "summary.json").read_text())
    summary["policies"][evil] = summary["policies"]["random"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(folder)]) == 0
    document = check_self_contained(read(folder))
    assert "".join(document.text).count(evil) >= 5


def test_the_memory_probe_is_shown_when_there_is_one(finished, tmp_path):
    assert "Memory" not in Document(read(finished)).text
    folder = copied(finished, tmp_path / "run")
    (folder / "memory.json").write_text(json.dumps({"sentence": "It remembers 7 steps.", "env_steps": 1234}))
    Image.new("RGB", (8, 8), "red").save(folder / "memory.png")
    report_html.write_report(folder)
    document = check_self_contained(read(folder))
    assert "It remembers 7 steps." in document.text
    assert any("1,234 steps" in t for t in document.text)
    assert [v[:30] for _, n, v in document.attributes if n == "alt"][1].startswith("The memory probe's figures.")


def test_a_run_that_was_killed_or_is_damaged_can_be_looked_at(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    (folder / "summary.json").write_text("{ torn")
    (folder / "lineage.csv").write_text("event,step\nx")
    (folder / "sessions.json").write_text("[]")
    with open(folder / "metrics.csv", "a") as file:
        file.write("200,0,3.5,17")
    report_html.write_report(folder)
    document = check_self_contained(read(folder))
    assert any("As of 160 of 160 steps per member" in t for t in document.text)
    assert document.row("step")[1] == "160"
    lines = (folder / "metrics.csv").read_text().split("\n")
    lines[-2] = lines[-2].replace(",", ",x", 1)  # the last record of member 2 is none
    (folder / "metrics.csv").write_text("\n".join(lines))
    report_html.write_report(folder)
    assert Document(read(folder)).row("step")[1] == "120"
    (folder / "metrics.csv").unlink()
    report_html.write_report(folder)
    assert "no values yet" in Document(read(folder)).text


def test_what_is_no_run_folder_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none is no run folder; expected one with config.yaml in it" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("- 1\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "config.yaml holds list; expected 'setting: value' lines" in capsys.readouterr().err


def test_it_is_written_at_checkpoints_and_a_fault_of_it_ends_no_run(tmp_path, monkeypatch):
    seen = []

    def spy(run):
        seen.append(run.env_steps)
        return honest(run) if len(seen) == 1 else 1 / 0

    honest, said = report_html.render, []
    monkeypatch.setattr(report_html, "render", spy)
    monkeypatch.setattr(report_html.LiveReport, "SHARE", 1.0)
    run = Trainer(clock(run_dir=str(tmp_path / "run"), checkpoint_every=80), say=said.append)
    run.train()
    assert seen == [80, 160]
    assert run.env_steps == 160
    assert any("report.html: not written (division by zero)" in line for line in said)
    assert any("As of 80 of 160 steps" in t for t in Document(read(run.folder)).text)  # the earlier one stays


def test_intervals_are_over_the_members_that_have_a_value():
    nan = float("nan")
    values = np.array([[1.0, 3.0, nan], [nan, nan, nan], [5.0, nan, nan], [1.0, 2.0, 6.0]])
    curve = Curve.of(np.arange(4.0), values)
    assert curve.x.tolist() == [0, 2, 3]
    assert curve.mean.tolist() == [2, 5, 3]
    for k, own in ((0, [1.0, 3.0]), (2, [1.0, 2.0, 6.0])):
        mean, half = mean_interval(np.array(own))
        assert (curve.low[k], curve.high[k]) == pytest.approx((mean - half, mean + half))
    assert np.isnan(curve.low[1])


def test_the_time_of_an_interval_is_what_the_totals_grew_by(finished):
    run = Results.load(finished)
    assert run.per_interval("update_s").sum() == pytest.approx(run.values["update_s"][-1, 0], rel=1e-6)
    assert (run.per_interval("act_s") > 0).all()


def test_pages_beside_a_run_take_a_hundredth_of_its_time(tmp_path, monkeypatch):
    now, pages, said = [1000.0], [], []
    monkeypatch.setattr(report_html.time, "monotonic", lambda: now[0])

    def write(folder):
        pages.append(now[0])
        now[0] += 2.0 * len(pages)  # each takes longer
        if len(pages) == 2:
            raise ValueError("what a page can fail of")

    monkeypatch.setattr(report_html, "write_report", write)
    live = report_html.LiveReport(tmp_path, said.append)
    for _ in range(1300):
        live.update()
        now[0] += 1.0
    assert pages[0] == 1000.0
    assert [round(b - a) for a, b in itertools.pairwise(pages)] == [200, 400, 600]
    assert said == [f"{tmp_path / 'report.html'}: not written (what a page can fail of)"]
