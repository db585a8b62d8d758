"""sessions.json of a run folder: the machine, the versions and the command that made each part of the run."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .._build import describe
from .folder import write_json

FILE = "sessions.json"


def note_session(folder: Path, step: int) -> None:
    """Add the present process to the sessions of the run in ``folder``, which it continues from ``step``."""
    facts = describe()
    for package in ("numpy", "gymnasium"):
        facts[package] = importlib.metadata.version(package)
    facts |= {"commit": commit(), "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    new = {"step": step, "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"), "facts": facts}
    write_json(folder / FILE, {"sessions": [*read_sessions(folder), new]})


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions that `note_session` wrote, oldest first; none where the file is missing or cannot be understood."""
    try:
        return list(json.loads((folder / FILE).read_text(encoding="utf-8"))["sessions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def commit() -> str:
    """The commit of the repository that this package lies in, with a + where the package was changed since.

    "unknown" where the package is installed, and lies in no repository of its own.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails where the repository around us is another one
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
