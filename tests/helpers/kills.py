"""Trains and kills: ``python kills.py FOLDER SEED WORLD=KILLS ...`` imports Townlet once and forks, for short lives.

A run is begun or resumed in a child, which is killed with SIGKILL at a moment drawn from SEED, until KILLS children
have died; then it is left to finish. A run that finishes before that is followed by another one, from the beginning.
FOLDER/WORLD gets the killed runs, the same run without a kill (straight) and deaths.json: where each child died.

KILLS = every: one short run for each file operation of an uninterrupted one, killed just before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tensorboard.compat.proto.event_pb2
import tensorboard.summary.writer.record_writer  # noqa: F401  here, once, and not in every child
import torch
from worlds import tiny

from townlet import report
from townlet.reports import plots
from townlet.runs import sessions
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

SHORT = {"total_steps": 40, "learning_starts": 28, "log_every": 16, "checkpoint_every": 16}
LONG = {"total_steps": 480, "log_every": 16, "checkpoint_every": 12, "eval_every": 100}


def settings(world: str, folder: Path, short: bool) -> Config:
    """Several members that copy each other, priorities, averaged weights: all that a checkpoint can hold."""
    own = {"env_args": {}} if world == "townlet/Town-v0" else {"env": world}
    own |= {"prioritised": True, "pbt_every": 90, "pbt_explore": ["lr"], "lr": (1e-3, 2e-3), "ema_decay": 0.5}
    return tiny(**own, **(SHORT if short else LONG), final_eval_episodes=0, run_dir=str(folder))


def live(config: Config, saved: int | None = None) -> None:
    """What ``townlet train`` does, or ``townlet train --resume`` where a run has been begun.

    ``saved``: a descriptor that gets a byte for each checkpoint.
    """
    assert config.run_dir is not None
    begun = Path(config.run_dir, "config.yaml").exists()
    if not begun:
        shutil.rmtree(config.run_dir, ignore_errors=True)  # killed before a single setting was on the disk
    trainer = Trainer.resume(config.run_dir, say=lambda text: None) if begun else Trainer(config)
    if saved is not None:
        save = trainer.save
        trainer.save = lambda records: (save(records), os.write(saved, b"s"))[0]  # type: ignore[method-assign]
    trainer.train()
    report.finish(trainer)


def fork(body: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            body()
            os._exit(0)
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    return child


def ended(child: int) -> int | None:
    """The signal that ended the child, None where it came to its end by itself."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        sys.exit("a child failed; its error is above")
    return None


def half_written(folder: Path) -> dict[str, int]:
    """Temporary files that a kill left, by name: when each was last written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob(".*.tmp")}


def newest(checkpoints: Path) -> str:
    return max((p.name for p in checkpoints.glob("*.ckpt")), default="")


def kill_at_random(folder: Path, world: str, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kills while it loads, one to three checkpoints later, and while a checkpoint is being written."""
    rng = random.Random(seed)
    deaths: list[dict[str, Any]] = []
    run, loading, period = "straight", 0.0, 0.0  # the first one is left alone, and tells how long things take
    while True:
        config = settings(world, folder / run, False)
        checkpoints = folder / run / "checkpoints"
        before = half_written(folder / run)
        reader, writer = os.pipe()
        begun = time.monotonic()
        child = fork(partial(live, config, writer))
        os.close(writer)
        where = rng.choice(("loading", "anywhere", "anywhere", "writing", "writing"))
        saves, share = rng.randint(1, 3), rng.random()
        if run == "straight":
            os.read(reader, 1)
            loading = time.monotonic() - begun
            while os.read(reader, 1):
                pass
            period = (time.monotonic() - begun - loading) / (config.total_steps // config.checkpoint_every)
        elif len(deaths) < kills:
            if where == "loading":
                time.sleep(share * loading)
            else:
                while saves and os.read(reader, 1):
                    saves -= 1
                time.sleep(share * period)
            until = time.monotonic() + 2 * period
            while where == "writing" and time.monotonic() < until:
                if any(name.startswith(".step_") for name in os.listdir(checkpoints)):
                    break
            os.kill(child, signal.SIGKILL)
        os.close(reader)
        if ended(child) == signal.SIGKILL:
            torn = {name for name, when in half_written(folder / run).items() if before.get(name) != when}
            deaths.append({"run": run, "where": where, "half_written": sorted(torn), "saved": newest(checkpoints)})
        elif len(deaths) < kills:
            run = "0" if run == "straight" else str(int(run) + 1)
        else:
            return deaths


def die_at_operation(number: int, config: Config, note: int) -> None:
    """Lives, and kills itself just before its operation ``number`` on a file of the run; ``note`` gets what it was."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event in ("os.rename", "os.remove", "os.mkdir")
        writes |= event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(config.run_dir) in str(arguments[0]):
            if count == number:
                os.write(note, f"{event} {arguments[0]}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(hook)
    live(config)


def kill_at_every_operation(folder: Path, world: str) -> list[dict[str, Any]]:
    deaths: list[dict[str, Any]] = []
    while True:
        run = folder / str(len(deaths))
        config = settings(world, run, True)
        reader, note = os.pipe()
        died = ended(fork(partial(die_at_operation, len(deaths), config, note)))
        os.close(note)
        where = os.read(reader, 1000).decode()
        os.close(reader)
        if died is None:  # there is no such operation: nothing killed this run
            run.rename(folder / "straight")
            return deaths
        deaths.append({"run": run.name, "where": where, "half_written": sorted(half_written(run))})
        ended(fork(partial(live, config)))


def main() -> None:
    torch.set_num_threads(1)
    plots.learning_curve = lambda metrics, path: None  # slow, like asking git
    sessions.commit = lambda: "unknown"
    for job in sys.argv[3:]:
        world, _, kills = job.partition("=")
        folder = Path(sys.argv[1], job.replace("/", "-"))
        folder.mkdir()
        if kills == "every":
            deaths = kill_at_every_operation(folder, world)
        else:
            deaths = kill_at_random(folder, world, int(kills), int(sys.argv[2]))
        (folder / "deaths.json").write_text(json.dumps(deaths, indent=1))


if __name__ == "__main__":
    main()
