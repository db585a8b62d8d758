"""``townlet train``: train agents and write a run folder, or continue an earlier run."""

from __future__ import annotations

import math
from typing import Any

from ..settings.config import Config
from .common import say
from .flags import add_arguments, from_arguments

_DESCRIPTION = """\
Train a population of agents and write a run folder. Without any flag the default world, the Town, is trained with the
settings of the preset "fast". Ctrl-C saves the run, and --resume continues it.
"""
_EPILOG = """\
Arguments of a world are given as --env-args level=town depletion=2. A value in a YAML file (--config) replaces the
default, and a flag replaces both.
"""


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    train = commands.add_parser(
        "train", help="train agents and write a run folder", description=_DESCRIPTION, epilog=_EPILOG
    )
    train.add_argument("--config", metavar="FILE", help="YAML file with settings; a flag wins over the file")
    train.add_argument(
        "--resume", metavar="RUN", help="continue the run in this folder, or from one of its checkpoint files"
    )
    add_arguments(train)
    train.set_defaults(run=run)


def run(arguments: Any) -> int:
    """Carry the command out; returns the exit code."""
    from ..training.finish import finish
    from ..training.progress import Progress
    from ..training.trainer import Trainer

    flags = from_arguments(arguments)
    if arguments.resume:
        if arguments.config:
            raise ValueError("--config and --resume are given; expected one, since a resumed run has its own settings")
        trainer = Trainer.resume(arguments.resume, flags, say=say)
        say(f"resuming at step {trainer.env_steps:,} of {trainer.config.total_steps:,}")
    else:
        config = (
            Config.from_yaml(arguments.config, flags) if arguments.config else Config.from_dict(flags, source="flags")
        )
        if config.replay_ratio and not config.updates_after(config.last_step):
            least = config.learning_starts + math.ceil(config.trained_per_update / config.replay_ratio)
            raise ValueError(
                f"total_steps is {config.total_steps}, which ends before the first update; expected at least {least}, "
                "or a smaller learning_starts"
            )
        trainer = Trainer(config, record=True, say=say)
    config, folder = trainer.config, trainer.folder
    assert folder is not None
    say(f"run folder: {folder}")
    progress = Progress(config.last_step, start=trainer.env_steps, members=config.members)
    trainer.say = progress.say
    try:
        trainer.train(progress)
    finally:
        progress.close()
    if trainer.stopped_by is not None:
        say(
            f"{trainer.stopped_by.name}: saved at step {trainer.env_steps:,}; to go on: townlet train --resume {folder}"
        )
    report = finish(trainer)
    if report is not None:
        print(report.text(), flush=True)
    print(f"run folder: {folder} (report.html shows it)", flush=True)
    return 0 if trainer.stopped_by is None else 128 + trainer.stopped_by.value
