"""Settings as flags of the command line, and back."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from townlet.commands.flags import add_arguments, from_arguments
from townlet.settings.config import Config


def arguments(config: Config, *names: str) -> list[str]:
    """The flags that make ``config`` out of the defaults."""
    default, out = Config(), []
    for f in fields(Config):
        value = getattr(config, f.name)
        if value == getattr(default, f.name) or f.name in names:
            continue
        pairs = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else None
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        out += ["--" + f.name.replace("_", "-"), *(pairs or [text])]
    return out


def flags(*argv: str) -> dict[str, Any]:
    """The settings that these flags give."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(argv))
