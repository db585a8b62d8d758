"""YAML as settings need it: plain values, every key once and no aliases. Anything else is a ValueError.

Aliases are refused, since a few lines of them can stand for more values than fit into memory.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20  # bytes of a file of settings

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 3, 80, 80, 40


def shown(value: Any) -> str:
    """The ``repr`` of any value, shortened for a line of a message."""
    try:
        return _short.repr(value)
    except ValueError:  # a number with more digits than Python prints
        return f"a {type(value).__name__} too long to print"


class _Loader(yaml.SafeLoader):
    """A loader that refuses aliases, and keys that are given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not supported, found *{self.peek_event().anchor}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and (key.tag, name) in seen:
                raise yaml.YAMLError(f"{shown(name)} is given twice, in line {key.start_mark.line + 1}")
            seen.add((key.tag, name))
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ValueError: the text is not YAML, or not of the kind that settings need.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:500]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # a date that does not exist, for one
        raise ValueError(f"it holds an invalid value ({str(error)[:200]})") from None


def read_mapping(path: str | Path, *, largest: int = LARGEST, may_be_empty: bool = False) -> dict[str, Any]:
    """The settings that a YAML file holds. Neither their names nor their values are checked.

    Args:
        path: the file.
        largest: the most bytes that the file may have.
        may_be_empty: whether a file without any setting is allowed.

    Raises:
        ValueError: the file is too large, is not YAML or does not hold settings; the message names it.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(largest + 1)
    try:
        if len(data) > largest:
            raise ValueError(f"it is larger than {largest:,} bytes, the most that settings can take")
        values = load(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not YAML ({error}); expected 'setting: value' lines") from None
    if values is None and may_be_empty:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; expected 'setting: value' lines")
    return values
