"""Sends a run's numbers to Weights & Biases where the run asks for it (``wandb: PROJECT``).

They are the numbers that TensorBoard's events hold. The package and its variables (WANDB_MODE=offline, WANDB_ENTITY,
...) decide where they go. A failure is reported once; the run goes on, and only these numbers are lost.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .folder import write_json

FILE = "wandb.json"


def require_wandb() -> None:
    """Refuse to go on without the package.

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "wandb is set, but its package is not installed; expected it (pip install wandb), or no such setting"
        )


class WandbLog:
    """A run on Weights & Biases. A resumed run continues the one whose id is in wandb.json of its folder.

    Args:
        folder: the run folder; what the package writes goes into its folder wandb/.
        project: the project on Weights & Biases.
        config: the settings to show there.
        say: receives the first failure, after which nothing more is sent.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._try(lambda: self._begin(folder, project, config))

    def _begin(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        name = folder.resolve().name
        known = _read(folder / FILE)
        mine = known if known.get("project") == project else {"project": project, "id": secrets.token_hex(6)}
        # the progress bar needs the terminal, so the package must not capture it
        self._run = wandb.init(
            **mine, name=name, dir=str(folder), config=dict(config), resume="allow", settings={"console": "off"}
        )
        write_json(folder / FILE, mine)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send ``scalars``, tag -> value. A resumed run repeats some steps, which the service ignores."""
        if self._run is not None:
            self._try(lambda: self._run.log(dict(scalars), step=step))

    def close(self) -> None:
        """End the run on the service, and wait for what is on its way."""
        if self._run is not None:
            self._try(lambda: self._run.finish())
            self._run = None

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a service and its package may raise anything
            self._run = None
            self._say(f"wandb: {error or type(error).__name__}; the run goes on without it")


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"project": str(found["project"]), "id": str(found["id"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
