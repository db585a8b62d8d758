"""What can go wrong while a run trains: a message, exit code 2, the last checkpoint intact, and the run can go on."""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from command_line import arguments
from trees import same
from worlds import SavableClock, clock

from townlet.cli import main
from townlet.reports import plots
from townlet.runs import checkpoint, sessions
from townlet.runs.metrics import read_metrics
from townlet.training.trainer import Trainer

END, EVERY = 120, 40  # 30 steps of 4 environments, a checkpoint after each ten


class Faulty(SavableClock):
    """A Clock that goes wrong, once ``armed``, at step 15 of its life: after the first checkpoint."""

    armed: ClassVar[str] = ""

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.total != 15 or not Faulty.armed:
            return obs, reward, terminated, truncated, info
        if Faulty.armed == "raises":
            raise RuntimeError("the simulator is gone")
        wrong = {
            "nan observation": (obs * np.nan, reward),
            "infinite observation": (obs + np.inf, reward),
            "nan reward": (obs, float("nan")),
            "infinite reward": (obs, -float("inf")),
            "no reward": (obs, None),
            "several rewards": (obs, np.ones(3)),
            "text as reward": (obs, "much"),
            "shape": (obs[:1], reward),
            "dimensions": (obs[None], reward),
            "text as observation": (np.array(["a", "b"]), reward),
            "objects": (np.array([None, {}], dtype=object), reward),
            "no observation": (None, reward),
        }
        return *wrong[Faulty.armed], terminated, truncated, info


gymnasium.register(id="Faulty-v0", entry_point=Faulty)


def command(folder: Path, **changes: Any) -> list[str]:
    config = clock(total_steps=END, checkpoint_every=EVERY, final_eval_episodes=0, **changes)
    return ["train", *arguments(config), "--run-dir", str(folder)]


def weights(run: Path) -> dict[str, Any]:
    return checkpoint.read_file(checkpoint.latest(run / "checkpoints"))["population"]


def steps(run: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["member"]) for row in read_metrics(run / "metrics.csv")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a fault."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(command(folder)) == 0
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def picture(metrics: Path, path: Path) -> None:  # as plots makes them, without what takes long
        plots._save(plots.plt.figure(figsize=(0.1, 0.1)), path)

    monkeypatch.setattr(plots, "learning_curve", picture)
    monkeypatch.setattr(sessions, "commit", lambda: "unknown")


def assert_refused(code: int, err: str, *words: str) -> None:
    assert code == 2, err
    assert "townlet train: error: " in err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def assert_goes_on(run: Path, straight: Path, capsys: Any) -> None:
    """Every checkpoint is whole, nothing half written is left, and the resumed run ends as the one without a fault."""
    for path in (run / "checkpoints").glob("*"):
        checkpoint.read_file(path)
    assert not list(run.rglob(".*"))
    assert main(["train", "--resume", str(run)]) == 0, capsys.readouterr().err
    assert same(weights(run), weights(straight))
    assert steps(run) == steps(straight)
    assert {p.name for p in run.iterdir() if "tfevents" not in p.name} == {
        p.name for p in straight.iterdir() if "tfevents" not in p.name
    }


FAULTS = {
    "raises": ("step of environment", "RuntimeError", "the simulator is gone"),
    "nan observation": ("observation", "not finite"),
    "infinite observation": ("observation", "not finite"),
    "nan reward": ("reward", "not finite"),
    "infinite reward": ("reward", "not finite"),
    "no reward": ("reward",),
    "several rewards": ("reward",),
    "text as reward": ("could not convert string to float: 'much'",),
    "shape": ("observation", "expected"),
    "dimensions": ("observation", "expected"),
    "text as observation": ("observation",),
    "objects": ("observation",),
    "no observation": ("observation",),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_world_that_goes_wrong(
    fault: str, tmp_path: Path, straight: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(Faulty, "armed", fault)
    code = main(command(run, env="Faulty-v0"))
    assert_refused(code, capsys.readouterr().err, "Faulty-v0", *FAULTS[fault])
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_000000000040.ckpt"]
    monkeypatch.setattr(Faulty, "armed", "")
    assert_goes_on(run, straight, capsys)


class Disk:
    """Stands in for ``open`` below a folder: opening number ``fails`` for writing meets a fault of the disk."""

    def __init__(self, folder: Path, fails: int, kind: str) -> None:
        self.folder, self.fails, self.kind = str(folder), fails, kind
        self.written: list[str] = []
        self.real = builtins.open

    def open(self, path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not (isinstance(path, (str, Path)) and str(path).startswith(self.folder)) or "r" in mode:
            return self.real(path, mode, *args, **options)
        self.written.append(str(path))
        if len(self.written) - 1 != self.fails:
            return self.real(path, mode, *args, **options)
        if self.kind == "full":  # the kernel's own: every write fails when it gets to the device
            return self.real("/dev/full", mode.replace("x", "w"), *args, **options)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def met(path: str) -> str:
    """What a file is, whatever its number or time."""
    name = Path(path).name.removeprefix(".").removesuffix(".tmp")
    return "events" if "tfevents" in name else "step.ckpt" if name.startswith("step_") else name


def openings(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, str, int]]:
    """Runs that met the fault when a file was opened the first and the last time: (what, run, its name, exit code)."""
    disk = Disk(folder / "none", -1, kind)
    monkeypatch.setattr(builtins, "open", disk.open)
    assert main(command(folder / "none")) == 0
    names = [met(path) for path in disk.written]
    last = {name: number for number, name in enumerate(names)}
    for number in sorted({names.index(name) for name in names} | (set(last.values()) if kind == "full" else set())):
        run = folder / str(number)
        disk = Disk(run, number, kind)
        monkeypatch.setattr(builtins, "open", disk.open)
        code = main(command(run))
        monkeypatch.setattr(builtins, "open", disk.real)
        yield names[number], run, Path(disk.written[number]).name.removeprefix(".").removesuffix(".tmp"), code


MAY_FAIL = ("status.json", "report.html")  # for those who look on: they end no run


@pytest.mark.parametrize(("kind", "message"), [("full", "No space left on device"), ("read only", "Read-only file")])
def test_a_disk_that_fails_at_each_file_in_turn(
    kind: str, message: str, tmp_path: Path, straight: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for what, run, name, code in openings(kind, tmp_path, monkeypatch):
        seen.add(what)
        err = capsys.readouterr().err
        if what in MAY_FAIL:
            assert code == 0, err
        else:
            assert_refused(code, err, message, name, str(run))
        if run.exists():
            assert_goes_on(run, straight, capsys)
        else:
            assert what == "config.yaml"  # nothing was begun: the same command can be given again
    assert seen == {"config.yaml", "sessions.json", "metrics.csv", "events", "step.ckpt", "agent.ckpt", "learning.png",
                    "summary.json", *MAY_FAIL}  # fmt: skip


def test_a_record_that_does_not_fit_is_not_left_in_halves(tmp_path: Path) -> None:
    from townlet.support.files import append_whole

    class Filling:
        """A file on a disk with room for ten bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 10

        def write(self, data: Any) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = self.file.write(data[: self.room])
            self.room -= done
            return done

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    path = tmp_path / "x"
    path.write_bytes(b"whole\n")
    with open(path, "ab", buffering=0) as file:
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            append_whole(Filling(file), b"a line of more than ten bytes\n", path)
        assert path.read_bytes() == b"whole\n"
        append_whole(file, b"next\n", path)
    assert path.read_bytes() == b"whole\nnext\n"


def during(monkeypatch: pytest.MonkeyPatch, at: int, happens: Callable[[], None]) -> None:
    """``happens`` once the run has made ``at`` steps."""
    step = Trainer.act_step

    def act_step(self: Trainer) -> None:
        step(self)
        if self.env_steps == at:
            happens()

    monkeypatch.setattr(Trainer, "act_step", act_step)


def test_a_run_folder_that_is_removed(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    during(monkeypatch, 60, lambda: shutil.rmtree(run))
    assert_refused(main(command(run)), capsys.readouterr().err, str(run), "No such file or directory")
    assert not run.exists()


def test_a_run_folder_that_is_moved(
    tmp_path: Path, straight: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        during(context, 60, lambda: run.rename(tmp_path / "moved"))
        assert_refused(main(command(run)), capsys.readouterr().err, str(run), "No such file or directory")
    assert not run.exists()
    assert_goes_on(tmp_path / "moved", straight, capsys)


def test_a_clock_that_goes_backwards(tmp_path: Path, straight: Path, capsys: Any, monkeypatch: Any) -> None:
    run = tmp_path / "run"
    ticks = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    assert main([*command(run), "--total-steps", "80"]) == 0
    assert main(["train", "--resume", str(run), "--total-steps", str(END)]) == 0
    assert same(weights(run), weights(straight))
    assert steps(run) == steps(straight)
    stamps = [int(p.name.split(".")[3]) for p in sorted(run.glob("*tfevents*"), key=lambda p: p.stat().st_mtime_ns)]
    assert stamps == sorted(set(stamps))  # TensorBoard reads them in this order
    assert len(stamps) == 2
    rows = read_metrics(run / "metrics.csv")
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_while_a_checkpoint_is_written(
    signals: int, tmp_path: Path, straight: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, writes = tmp_path / "run", checkpoint._HashingFile.write, itertools.count()

    def interrupted(self: Any, data: Any) -> int:
        if "000080" in str(self.file.name) and next(writes) == 50:  # in the middle of the second checkpoint
            for _ in range(signals):
                signal.raise_signal(signal.SIGTERM)
        return write(self, data)

    with monkeypatch.context() as context:
        context.setattr(checkpoint._HashingFile, "write", interrupted)
        assert main(command(run)) == {1: 143, 2: 130}[signals]
    assert next(writes) > 50
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == [f"step_{n:012d}.ckpt" for n in ((40, 80) if signals == 1 else (40,))]
    assert_goes_on(run, straight, capsys)
