"""One command line flag for every setting, made from ``Config``'s own fields."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

from ..settings.config import GROUPS, Config
from ..settings.presets import PRESETS
from ..settings.values import KINDS, kind_of, scalar


def _parse_flag(f: Field[Any]) -> Callable[[str], Any]:
    kind, optional = kind_of(f)

    def parse(text: str) -> Any:
        if kind == "str":
            return None if optional and text.lower() == "none" else text
        try:
            if "tuple" in kind and "," in text:
                return [scalar(part) for part in text.split(",") if part]
            return scalar(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


class _KeyValues(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        pairs = dict(getattr(namespace, self.dest, None) or {})
        for text in values:
            key, separator, value = text.partition("=")
            if not (separator and key):
                parser.error(f"{option_string} is {text!r}; expected key=value")
            try:
                pairs[key] = scalar(value)
            except ValueError as error:
                parser.error(f"{option_string}: in {text!r}, {error}")
        setattr(namespace, self.dest, pairs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting, in groups. A flag that is not given leaves no attribute in the namespace."""
    about = f"settings to start from: {', '.join(PRESETS)} (default: fast); `townlet presets` shows them"
    parser.add_argument("--preset", metavar="NAME", default=argparse.SUPPRESS, help=about)
    group: Any = parser
    for f in fields(Config):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        kind, _ = kind_of(f)
        flag, meaning = "--" + f.name.replace("_", "-"), f.metadata["meaning"].replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": KINDS[kind][2]}
        if kind == "dict[str, Any]":
            group.add_argument(flag, nargs="+", action=_KeyValues, help=meaning, **options)
            continue
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        options["help"] = f"{meaning} (default: {'none' if shown is None else shown})"
        if kind == "tuple[str, ...]":
            if f.default is None:
                options["help"] = f"{meaning} (default: the world's own)"
            group.add_argument(flag, nargs="+", **options)
        elif kind == "bool":
            del options["metavar"]
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag, type=_parse_flag(f), **options)


def from_arguments(namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    names = {"preset", *(f.name for f in fields(Config))}
    return {k: v for k, v in vars(namespace).items() if k in names}
