"""The run folder: making it, reading the settings in it, and writing the small files of a run."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..settings import plain_yaml
from ..support.files import replacing


def new_folder(path: str | Path | None, world: str) -> Path:
    """Make the run's folder.

    Args:
        path: the folder; None makes ``runs/<world>-<time>``, with a number behind it where that exists.
        world: the world's id, for the name.

    Returns:
        The new folder.

    Raises:
        ValueError: ``path`` exists (a run is never overwritten) or cannot be made.
    """
    try:
        if path is not None:
            folder = Path(path)
            folder.mkdir(parents=True)
            return folder
        name = re.sub(r"[^A-Za-z0-9.]+", "-", world).strip("-")
        base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        base.parent.mkdir(parents=True, exist_ok=True)
        for n in range(1, 1000):
            folder = base if n == 1 else base.with_name(f"{base.name}-{n}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
        raise ValueError(f"{base} exists a thousand times; expected fewer runs begun in one second")
    except FileExistsError:
        raise ValueError(
            f"{path} exists; a run is never overwritten: expected another --run-dir, or --resume {path}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path or 'runs'} cannot be made ({error.strerror})") from None


def read_settings(folder: str | Path, *, largest: int = plain_yaml.LARGEST) -> dict[str, Any]:
    """The settings in config.yaml of a run folder. They are not checked, since other versions have other settings.

    Args:
        folder: the run folder.
        largest: the most bytes that the file may have.

    Raises:
        ValueError: ``folder`` is no run folder, or its config.yaml does not hold settings.
        OSError: the file cannot be read.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder; expected one with config.yaml in it")
    return plain_yaml.read_mapping(path, largest=largest)


def write_json(path: str | Path, values: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write ``values`` as JSON in one move, so that a reader never sees half a file.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, durable=durable) as file:
        file.write(json.dumps(values, indent=2) + "\n")


def process_mark(pid: int) -> str | None:
    """The text "host:pid:start", which no other process on this host ever has.

    None where the process does not run, or where /proc does not tell.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{socket.gethostname()}:{pid}:{rest[18]}"
