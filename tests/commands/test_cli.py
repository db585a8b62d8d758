"""The command as people use it: train, eval, watch, doctor, their files, their messages, their exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from command_line import arguments
from paths import ROOT
from PIL import Image
from worlds import tiny

from townlet import ops, report
from townlet.agent import Agent
from townlet.cli import main
from townlet.doctor import checks
from townlet.runs import checkpoint
from townlet.runs.folder import new_folder
from townlet.runs.metrics import COLUMNS, Records
from townlet.settings.config import Config
from townlet.support import text
from townlet.training import progress
from townlet.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run in the hamlet: (folder, what was printed)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        code = main(["train", *arguments(tiny(eval_every=80)), "--run-dir", str(folder)])
        printed = sys.stdout.getvalue()
    finally:
        sys.stdout = out
    assert code == 0
    return folder, printed


@pytest.fixture(scope="module")
def clock_run(tmp_path_factory):
    """A finished tiny run in a world that is not the Town."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert (
        main(
            [
                "train",
                *arguments(tiny(members=1), "env_args"),
                "--env",
                "worlds:SavableClock-v0",
                "--run-dir",
                str(folder),
            ]
        )
        == 0
    )
    return folder


def test_train_leaves_the_run_folder(run):
    folder, printed = run
    names = {"events" if "tfevents" in p.name else p.name for p in folder.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "events",
        "checkpoints",
        "agent.ckpt",
        "status.json",
        "sessions.json",
        "survival.png",
        "report.html",
        "learning.png",
        "summary.json",
    }
    assert yaml.safe_load((folder / "config.yaml").read_text())["hidden_size"] == 8
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == tuple(COLUMNS)
    assert len(rows) == 8
    assert float(rows[-1]["eval_survival"]) > 0
    for picture in ("survival.png", "learning.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 800
            assert len(np.unique(np.asarray(image.convert("L")))) > 5
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["stopped_by"] is None
    assert summary["score"] == "survival"
    assert summary["env_steps"] == 160
    assert summary["updates"] == 15
    wanted = {"random", "bed-sitter", "trained", "trained, state zeroed each step", "scripted (sees everything)"}
    assert wanted <= summary["policies"].keys()
    assert "  member 1" in summary["policies"]
    assert summary["policies"]["scripted (sees everything)"]["mean"] > summary["policies"]["random"]["mean"]
    assert all(name in printed for name in wanted)
    assert str(folder) in printed


def test_a_run_is_never_overwritten(run, capsys):
    before = {p: p.read_bytes() for p in run[0].rglob("*") if p.is_file()}
    assert main(["train", *arguments(tiny()), "--run-dir", str(run[0])]) == 2
    assert "exists; a run is never overwritten" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run[0].rglob("*") if p.is_file()}


def test_runs_get_new_numbered_folders_by_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *a: "20300101-000000")
    names = [new_folder(None, "townlet/Town-v0").as_posix() for _ in range(3)]
    first = "runs/townlet-Town-v0-20300101-000000"
    assert names == [first, first + "-2", first + "-3"]
    Path("file").write_text("")
    with pytest.raises(ValueError, match="file/x cannot be made"):
        new_folder("file/x", "w")


def test_yaml_and_flags(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    tiny(total_steps=80, final_eval_episodes=0).to_yaml(path)
    flags = ["--seed", "9", "--run-dir", str(tmp_path / "r"), "--env-args", "depletion=2"]
    assert main(["train", "--config", str(path), *flags]) == 0
    kept = Config.from_yaml(tmp_path / "r" / "config.yaml")
    assert (kept.seed, kept.total_steps, kept.env_args) == (9, 80, {"depletion": 2})
    assert not (tmp_path / "r" / "survival.png").exists()
    assert (tmp_path / "r" / "summary.json").exists()
    assert "memory: replay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "r", "--episodes", "0"], "argument --episodes: the value is 0; expected at least 1"),
        (["eval", "r", "--seed", "-1"], "argument --seed: the value is -1; expected at least 0"),
        (["train", "--env-args", "size"], "--env-args is 'size'; expected key=value"),
        (["train", "--lr", "["], "argument --lr: the value is '[', which is not YAML"),
    ],
)
def test_flags_that_cannot_be_read_name_themselves(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_resume_continues_a_finished_run(tmp_path, capsys):
    folder = str(tmp_path / "r")
    assert main(["train", *arguments(tiny(total_steps=80, final_eval_episodes=0)), "--run-dir", folder]) == 0
    assert main(["train", "--resume", folder, "--total-steps", "120"]) == 0
    assert "resuming at step 80 of 120" in capsys.readouterr().err
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["env_steps"] == 120
    assert main(["train", "--resume", folder, "--lr", "1"]) == 2
    assert main(["train", "--resume", folder, "--config", "x"]) == 2
    said = capsys.readouterr().err
    assert "lr is given, but cannot change" in said
    assert "--config and --resume are given; expected one" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--members", "0"], "members is 0; expected at least 1"),
        (["train", "--cell", "gru"], "GRU among them"),
        (["train", "--env", "Pendulum-v1"], "continuous action space"),
        (["train", "--env", "Nope-v0"], "Nope-v0: cannot be made"),
        (["train", "--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["train", "--env-args", "speed=3"], "speed"),
        (["eval", "missing"], "missing does not exist; expected a run folder or a checkpoint"),
        (["watch", "."], "holds no checkpoint"),
    ],
)
def test_wrong_requests_end_with_a_message_and_no_traceback(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert f"townlet {argv[0]}: error: " in err
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((ValueError, OSError)):
        main(["--debug", *argv])


def test_help_names_commands_and_settings(capsys):
    for argv, words in (
        (["--help"], ["train", "eval", "watch", "doctor"]),
        (
            ["train", "--help"],
            ["--replay-ratio", "--resume", "--config", "exploration:", "environment steps per member"],
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(argv)
        text = capsys.readouterr().out
        assert end.value.code == 0
        assert all(w in text for w in words)


def test_eval_prints_the_table_with_intervals(run, tmp_path, capsys):
    assert main(["eval", str(run[0]), "--episodes", "5", "--seed", "3", "--picture", str(tmp_path / "s.png")]) == 0
    text = capsys.readouterr().out
    assert "survival, 5 episodes" in text
    assert "95% interval" in text
    assert "at cap" in text
    line = next(row for row in text.splitlines() if row.startswith("random"))
    mean, low, high = map(float, re.match(r"random\s+(\S+)\s+(\S+) \.\. (\S+)", line).groups())
    assert low < mean < high
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert main(["eval", str(run[0] / "checkpoints" / "step_000000000160.ckpt"), "--episodes", "2"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^  member 1 ", table, re.M)
    assert main(["eval", str(run[0] / "agent.ckpt"), "--episodes", "2"]) == 0
    assert capsys.readouterr().out == table
    assert main(["train", "--resume", str(run[0] / "agent.ckpt")]) == 2
    assert "holds only an agent" in capsys.readouterr().err


def test_eval_and_watch_in_another_world(clock_run, tmp_path, capsys):
    assert not (clock_run / "survival.png").exists()
    assert (clock_run / "learning.png").exists()
    assert main(["eval", str(clock_run), "--episodes", "4"]) == 0
    text = capsys.readouterr().out
    assert "return, 4 episodes" in text
    assert "bed-sitter" not in text
    assert "at cap" not in text
    assert main(["eval", str(clock_run), "--picture", "x.png"]) == 2
    assert "--picture is given for a run in worlds:SavableClock-v0; expected a run in" in capsys.readouterr().err
    assert main(["watch", str(clock_run)]) == 0
    assert "tick 0 of " in capsys.readouterr().out
    assert main(["watch", str(clock_run), "--gif", str(tmp_path / "c.gif")]) == 0
    with Image.open(tmp_path / "c.gif") as image:
        assert 4 <= image.n_frames <= 8


def test_watch_plays_in_the_terminal(run, capsys):
    assert main(["watch", str(run[0]), "--max-steps", "5", "--member", "1", "--no-memory"]) == 0
    text = capsys.readouterr().out
    assert text.count("--- step") == 6
    assert "5 steps, return" in text


def test_watch_writes_a_gif(run, tmp_path, capsys):
    path = tmp_path / "episode.gif"
    assert main(["watch", str(run[0]), "--gif", str(path), "--max-steps", "6", "--fps", "20"]) == 0
    assert f"{path}: 6 steps" in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.n_frames == 7
        assert image.info["duration"] == 50
        frames = []
        for i in range(7):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
    assert any(not np.array_equal(frames[0], f) for f in frames[1:])


def test_a_run_that_would_never_learn_is_refused_before_it_begins(tmp_path, capsys):
    few = tiny(total_steps=44, final_eval_episodes=0)  # 40 steps before learning, and 8 for the first update
    folder = tmp_path / "run"
    assert main(["train", *arguments(few), "--run-dir", str(folder)]) == 2
    assert "total_steps is 44, which ends before the first update; expected at least 48" in capsys.readouterr().err
    assert not folder.exists()
    assert (
        main(["train", *arguments(replace(few, replay_ratio=0.0)), "--run-dir", str(folder)]) == 0
    )  # it was asked for
    # the control: the least number of steps that the message names
    assert main(["train", *arguments(replace(few, total_steps=48)), "--run-dir", str(tmp_path / "least")]) == 0
    assert Agent.load(tmp_path / "least").env_steps == 48
    assert Trainer.resume(tmp_path / "least").updates == 1


def test_progress_ends_at_the_whole(tmp_path, capsys):
    settings = tiny(total_steps=158, final_eval_episodes=0)  # four environments: the run ends at step 160
    assert settings.last_step == 160
    assert main(["train", *arguments(settings), "--run-dir", str(tmp_path / "run")]) == 0
    assert "160/160 steps (100%)" in capsys.readouterr().err
    assert tiny(total_steps=160).last_step == 160  # the control: where steps fit, nothing is added


def test_watch_refuses_what_it_cannot_do(run, clock_run, capsys, tmp_path):
    assert main(["watch", str(run[0]), "--member", "2"]) == 2
    assert main(["watch", str(run[0]), "--fps", "0"]) == 2
    err = capsys.readouterr().err
    assert "member is 2; expected 0 to 1" in err
    assert "--fps is 0.0; expected a number above 0" in err
    for argv in (["eval", "x", "--episodes", "0"], ["watch", "x", "--seed", "-1"]):
        with pytest.raises(SystemExit):
            main(argv)


def test_a_world_that_cannot_be_drawn_is_named(tmp_path, capsys, monkeypatch):
    folder = str(tmp_path / "run")
    flags = [
        *arguments(tiny(members=1, final_eval_episodes=0), "env_args"),
        "--env",
        "popgym-PositionOnlyCartPoleEasy-v0",
    ]
    assert main(["train", *flags, "--run-dir", folder]) == 0
    assert main(["watch", folder]) == 0
    assert "sees " in capsys.readouterr().out  # no text of its own: its numbers

    def no_library(self):
        raise gymnasium.error.DependencyNotInstalled("the drawing library is not installed")

    monkeypatch.setattr(gymnasium.vector.SyncVectorEnv, "render", no_library)
    assert main(["watch", folder, "--gif", str(tmp_path / "x.gif")]) == 2
    assert "cannot be drawn: the drawing library is not installed" in capsys.readouterr().err
    assert not (tmp_path / "x.gif").exists()


def test_watch_clears_a_terminal_between_frames(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream, waits = Terminal(), []
    monkeypatch.setattr(time, "sleep", waits.append)
    from townlet.watch import episode as watch

    watch.in_terminal(report.Agent.load(run[0]), stream, fps=4.0, seed=0, max_steps=3)
    assert stream.getvalue().count("\x1b[H\x1b[2J") == 4
    assert waits == [0.25] * 4


def test_doctor_finds_the_kernels_right(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("compiler", "kernel in use", ops.ISA, "threads", "GPU", "td_unroll", "lstm_unroll", "lstm_step"):
        assert word in text
    assert "WRONG" not in text
    assert "all operators agree" in text


@pytest.mark.parametrize("op", ["td_unroll", "lstm_unroll", "lstm_step"])
def test_doctor_finds_a_wrong_kernel(op, monkeypatch, capsys):
    right = getattr(ops, op)

    def wrong(*args, **kwargs):
        out = right(*args, **kwargs)
        spoiled = out[1] * (1 + 1e-3)
        return out._replace(td_error=spoiled) if hasattr(out, "_replace") else (out[0], spoiled, *out[2:])

    monkeypatch.setattr(ops, op, wrong)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(rf"{op}.*WRONG", text)
    assert text.splitlines()[-1].startswith(f"WRONG: {op}")


def test_doctor_takes_nan_for_wrong():
    assert not checks._worst([torch.tensor([float("nan")])], [torch.ones(1)]) <= checks.TOLERANCE


def test_a_full_disk_ends_the_run_with_a_message(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_stream", full)
    assert main(["train", *arguments(tiny(total_steps=80)), "--run-dir", str(tmp_path / "r")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "r" / "checkpoints").iterdir()) == []


def test_a_signal_saves_and_ends_cleanly(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        argv = [*arguments(tiny(total_steps=10**9, replay_ratio=0.1)), "--run-dir", str(tmp_path / number.name)]
        command = [sys.executable, "-m", "townlet", "train", *argv]
        pipe = subprocess.PIPE
        running[number] = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    for number, process in running.items():
        folder = tmp_path / number.name
        deadline = time.monotonic() + 60
        metrics = folder / "metrics.csv"
        while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            time.sleep(0.05)
        process.send_signal(number)
    for number, process in running.items():
        folder = tmp_path / number.name
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert "Traceback" not in err
        assert f"{number.name}: saved at step" in err
        tree = checkpoint.read_file(checkpoint.latest(folder / "checkpoints"))
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["stopped_by"] == number.name
        assert not summary["finished"]
        assert tree["env_steps"] == summary["env_steps"] > 0


def test_an_interruption_outside_training_is_not_a_traceback(monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.Agent, "load", interrupted)
    assert main(["eval", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_outside_training_ends_with_its_code(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(report.Agent, "load", lambda path: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        main(["eval", "x"])
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = progress.Progress(1000, start=200, members=2, stream=stream, every=10.0)
    for step in range(300, 1001, 100):
        now[0] += 4.0
        bar.show(step, step // 10, lambda: "survival 7")
    bar.say("hello")
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "500/1,000 steps (50%), 50 steps/s, 1.7 updates/s, survival 7, 0:20 left"
    assert len(lines) == 4
    assert lines[-2].startswith("1,000/1,000 steps (100%)")
    assert lines[-1] == "hello"
    assert text.clock(float("inf")) == "unknown time"
    assert text.clock(3725) == "1:02:05"


def test_progress_in_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = Terminal()
    bar = progress.Progress(1000, stream=stream)
    for step in (100, 500, 1000):
        now[0] += 1.0
        bar.show(step, step, lambda: "return 0.5")
    bar.say("hello")
    bar.close()
    text = stream.getvalue()
    assert "1,000/1,000 steps" in text
    assert "steps/s" in text
    assert "return 0.5" in text
    assert "hello" in text


def test_a_run_stopped_before_its_first_record_has_its_files(tmp_path):
    run = Trainer(tiny(run_dir=str(tmp_path / "run")))
    run.act_step = lambda: signal.raise_signal(signal.SIGTERM)
    run.train()
    assert report.finish(run) is None
    assert {"summary.json", "learning.png", "metrics.csv"} <= {p.name for p in run.folder.iterdir()}
    assert Trainer.resume(tmp_path / "run").env_steps == 0


def test_records_leave_what_is_not_known_empty(tmp_path):
    records = Records(tmp_path, tensorboard=False)
    records.add(10, {"updates": 1}, [{"loss": float("nan"), "epsilon": 0.5}])
    records.close()
    row = next(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert row["loss"] == ""
    assert row["epsilon"] == "0.5"
    assert row["updates"] == "1"
