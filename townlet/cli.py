"""The ``townlet`` command: train, eval, watch, bench, doctor.

Exit codes: 0 done; 1 ``doctor`` or ``bench`` found a wrong result; 2 what was asked for is wrong (message, no
traceback); 128 + n stopped by signal n after saving (130 for Ctrl-C, 143 for SIGTERM).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import Config
from .flags import add_arguments, from_arguments
from .signals import sigterm_unwinds

_EPILOG = """\
A world's arguments: --env-args level=town depletion=2. Values in a YAML file (--config) replace defaults, flags replace
both.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="townlet", description="Populations of recurrent Q-learning agents.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,eval,watch,bench,doctor}")

    train = commands.add_parser("train", help="train agents and write a run folder", epilog=_EPILOG)
    train.add_argument("--config", metavar="FILE", help="YAML file with settings; flags win over it")
    train.add_argument(
        "--resume", metavar="RUN", help="continue the run in this folder (or from one of its checkpoints)"
    )
    add_arguments(train)
    train.set_defaults(run=_train)

    evaluation = commands.add_parser("eval", help="play unseen episodes and print the table")
    evaluation.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    evaluation.add_argument("--episodes", type=_positive, default=256, metavar="N", help="per policy (default: 256)")
    evaluation.add_argument("--seed", type=_natural, metavar="N", help="of the episodes (default: the run's)")
    evaluation.add_argument("--picture", metavar="FILE", help="also draw survival.png there (Town)")
    evaluation.set_defaults(run=_eval)

    watch = commands.add_parser("watch", help="play one episode in the terminal, or write it as a GIF")
    watch.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint")
    watch.add_argument("--gif", metavar="FILE", help="write a GIF instead of playing in the terminal")
    watch.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the episode (default: 0)")
    watch.add_argument("--member", type=_natural, default=0, metavar="P", help="which member plays (default: 0)")
    watch.add_argument("--no-memory", action="store_true", help="zero the state before every step")
    watch.add_argument(
        "--max-steps", type=_positive, default=500, metavar="N", help="stop after N steps (default: 500)"
    )
    watch.add_argument("--fps", type=float, default=8.0, metavar="X", help="pictures per second (default: 8)")
    watch.set_defaults(run=_watch)

    bench = commands.add_parser(
        "bench",
        help="measure this machine: the operator beside its peak and torch.nn.LSTM, acting, the simulator",
        description="Checks every result first, then prints median and best times. Takes under a minute; the full "
        "comparison is benchmarks/run.py in the repository.",
    )
    bench.add_argument("--quick", action="store_true", help="fewer shapes and repeats: about ten seconds")
    bench.add_argument("--threads", type=_positive, default=1, metavar="N", help="to measure with (default: 1)")
    bench.add_argument("--json", metavar="FILE", help="also write the figures there")
    bench.set_defaults(run=_bench)

    doctor = commands.add_parser("doctor", help="describe the build and check the compiled operators")
    doctor.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    doctor.set_defaults(run=_doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        with sigterm_unwinds():
            return int(arguments.run(arguments))
    except (ValueError, OSError, MemoryError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to say
            return 0
        print(f"townlet {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _train(arguments: Any) -> int:
    from .progress import Progress
    from .report import finish
    from .trainer import Trainer

    flags = from_arguments(arguments)
    if arguments.resume:
        if arguments.config:
            raise ValueError("--config and --resume: expected one of them; a resumed run has its own configuration")
        trainer = Trainer.resume(arguments.resume, flags, say=_say)
        _say(f"resuming at step {trainer.env_steps:,} of {trainer.config.total_steps:,}")
    else:
        config = (
            Config.from_yaml(arguments.config, flags) if arguments.config else Config.from_dict(flags, source="flags")
        )
        trainer = Trainer(config, record=True, say=_say)
    config, folder = trainer.config, trainer.folder
    assert folder is not None
    _say(f"run folder: {folder}")
    progress = Progress(config.total_steps, start=trainer.env_steps, members=config.members)
    trainer.say = progress.say
    try:
        trainer.train(progress)
    finally:
        progress.close()
    if trainer.stopped_by is not None:
        _say(
            f"{trainer.stopped_by.name}: saved at step {trainer.env_steps:,}; to go on: townlet train --resume {folder}"
        )
    report = finish(trainer)
    if report is not None:
        print(report.text(), flush=True)
    print(f"run folder: {folder}", flush=True)
    return 0 if trainer.stopped_by is None else 128 + trainer.stopped_by.value


def _eval(arguments: Any) -> int:
    from .report import Agent, compare

    agent = Agent.load(arguments.run_folder)
    seed = agent.config.seed if arguments.seed is None else arguments.seed
    if arguments.picture and not agent.config.is_town:
        raise ValueError(f"--picture: expected a run in the Town, this one is in {agent.config.env}")
    report = compare(agent, arguments.episodes, seed)
    done = f"{agent.config.env} after {agent.env_steps:,} steps per member"
    print(f"{done}: {report.score_name}, {arguments.episodes} episodes")
    print(report.text())
    if arguments.picture:
        from . import plots

        plots.survival(report, arguments.picture)
    return 0


def _watch(arguments: Any) -> int:
    from . import watch
    from .report import Agent

    agent = Agent.load(arguments.run_folder)
    if not arguments.fps > 0:
        raise ValueError(f"--fps {arguments.fps}: expected a number above 0")
    options = {"seed": arguments.seed, "member": arguments.member, "memory": not arguments.no_memory}
    options |= {"max_steps": arguments.max_steps, "fps": arguments.fps}
    if arguments.gif:
        steps, score = watch.to_gif(agent, Path(arguments.gif), **options)
        print(f"{arguments.gif}: {steps} steps, return {score:.4g}")
    else:
        steps, score = watch.in_terminal(agent, sys.stdout, **options)
        print(f"{steps} steps, return {score:.4g}")
    return 0


def _bench(arguments: Any) -> int:
    from .bench.problem import WrongResult
    from .bench.short import run

    try:
        run(print, quick=arguments.quick, threads=arguments.threads, file=arguments.json)
    except WrongResult as error:
        print(f"townlet bench: WRONG RESULT: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(arguments: Any) -> int:
    from .doctor import examine

    return examine(print, arguments.device)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
