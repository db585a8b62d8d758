"""Reads a run back from its folder: its settings, its last whole checkpoint, its agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings.config import Config
from . import checkpoint
from .checkpoint import CheckpointError

CHANGEABLE_ON_RESUME = frozenset(
    [
        "total_steps",
        "threads",
        "workers",
        "device",
        "cuda_graph",
        "eval_every",
        "eval_episodes",
        "final_eval_episodes",
        "eval_max_steps",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "run_dir",
        "wandb",
    ]
)
"""Settings that may differ between a checkpoint and the run that continues it."""


@dataclass(frozen=True)
class StoppedRun:
    """A run to continue."""

    folder: Path  # the run folder
    config: Config  # the run's settings, with what the user changes
    source: Path  # the file that the settings and the tree were read from
    tree: dict[str, Any] | None  # what `Trainer.state_dict` returned; None where the run has to begin anew


def stopped_run(run: str | Path, overrides: Mapping[str, Any], say: Callable[[str], None]) -> StoppedRun:
    """Read a run from its folder, or from one of its checkpoint files, for `Trainer.resume`.

    Args:
        run: the run folder, or a checkpoint file in its folder 'checkpoints'.
        overrides: settings that are to differ, name -> value; all must be in ``CHANGEABLE_ON_RESUME``.
        say: receives a line for each damaged checkpoint, and one for a run without any checkpoint.

    Returns:
        What is needed to continue the run.

    Raises:
        CheckpointError: there is no run, or no checkpoint of it is whole.
        ValueError: an override cannot change, or ``run`` is a checkpoint outside a run folder.
    """
    run = Path(run)
    fixed = sorted(set(overrides) - CHANGEABLE_ON_RESUME)
    if fixed:
        allowed = ", ".join(sorted(CHANGEABLE_ON_RESUME))
        raise ValueError(f"{fixed[0]} is given, but cannot change when a run is resumed; expected some of {allowed}")
    if run.is_file():
        tree, folder = read_run(run), run.parent.parent
        if run.parent.name != "checkpoints":
            raise ValueError(
                f"{run} is no part of a run folder; expected a run folder, or a checkpoint in its folder 'checkpoints'"
            )
        return _stopped(run, tree, folder, overrides)
    settings = run / "config.yaml"
    if not checkpoint.exists(run / "checkpoints") and settings.exists():
        say(f"{run} was stopped before its first checkpoint; it begins anew")
        return StoppedRun(run, Config.from_yaml(settings, {**overrides, "run_dir": str(run)}), settings, None)
    path, tree = checkpoint.read_newest(run / "checkpoints", say)
    return _stopped(path, _of_run(tree, path), run, overrides)


def _stopped(path: Path, tree: dict[str, Any], folder: Path, overrides: Mapping[str, Any]) -> StoppedRun:
    settings = {**_settings(tree, path), **overrides, "run_dir": str(folder)}
    return StoppedRun(folder, Config.from_dict(settings, source=str(path)), path, tree)


def read_run(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training run.

    Raises:
        CheckpointError: the file cannot be read, or is no checkpoint of a training run.
    """
    return _of_run(checkpoint.read_file(path), path)


def _of_run(tree: dict[str, Any], path: str | Path) -> dict[str, Any]:
    if tree.get("kind") != "townlet-run":
        what = "only an agent" if tree.get("kind") == "townlet-agent" else "something else"
        raise CheckpointError(f"{path} holds {what}; expected the checkpoint of a training run")
    return tree


def read_agent(path: str | Path) -> dict[str, Any]:
    """Read what makes up an agent from a checkpoint or an agent.ckpt.

    Returns:
        ``config``, ``env_steps``, ``hyper`` and ``weights`` (the ones that evaluation plays with), by name.

    Raises:
        CheckpointError: the file cannot be read, or holds no agent.
    """
    tree = checkpoint.read_file(path)
    if tree.get("kind") not in ("townlet-run", "townlet-agent"):
        raise CheckpointError(f"{path} holds no agent; expected a checkpoint of a run, or an agent.ckpt")
    _settings(tree, path)
    try:
        if tree["kind"] == "townlet-run":
            population = tree["population"]
            tree["weights"] = population.get("average", population["online"])
        return {key: tree[key] for key in ("config", "env_steps", "hyper", "weights")}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hold what an agent needs ({error!r})") from error


def _settings(tree: dict[str, Any], path: str | Path) -> dict[str, Any]:
    settings = tree.get("config")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings; expected them as its 'config'")
    return settings
