"""What a single setting may be: how a value of each type is read, and in which range it has to lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any

import numpy as np

from . import plain_yaml
from .plain_yaml import shown
from .spreads import FORMS, Spread

# ---- types ----------------------------------------------------------------------------------------------------------


def _int(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or v != int(v) or not -(2**63) <= v < 2**63:
        raise TypeError
    return int(v)


def _float(v: Any) -> float:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v):
        raise TypeError
    return float(v)


def _str(v: Any) -> str:
    if not isinstance(v, str) or not v:
        raise TypeError
    return v


def _bool(v: Any) -> bool:
    if not isinstance(v, bool):
        raise TypeError
    return v


def _ints(v: Any) -> tuple[int, ...]:
    return tuple(_int(x) for x in v) if isinstance(v, (list, tuple)) else (_int(v),)


def _strs(v: Any) -> tuple[str, ...]:
    if v is False:  # YAML 1.1 reads "off" as False
        v = "off"
    if not isinstance(v, (str, list, tuple)):
        raise TypeError
    return (_str(v),) if isinstance(v, str) else tuple(_str(x) for x in v)


def _floats(v: Any) -> float | tuple[float, ...] | Spread:
    if isinstance(v, str):
        return Spread.parse(v)
    if isinstance(v, (list, tuple)):
        return tuple(_float(x) for x in v)
    return _float(v)


def _args(v: Any) -> dict[str, Any]:
    if not isinstance(v, Mapping) or not all(isinstance(k, str) for k in v):
        raise TypeError
    return {key: _plain(value) for key, value in v.items()}


def _plain(v: Any) -> Any:
    """A value as YAML and checkpoints hold it: None, numbers, strings, and lists and string-keyed mappings of them."""
    if isinstance(v, (np.ndarray, np.generic)):
        v = v.tolist()
    if isinstance(v, Mapping):
        return _args(v)
    if isinstance(v, (list, tuple)):
        return [_plain(x) for x in v]
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    raise TypeError


# Annotation -> what converts a value, what the error says was expected, and how --help shows it.
KINDS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "int": (_int, "an integer", "N"),
    "float": (_float, "a finite number", "X"),
    "str": (_str, "a non-empty string", "NAME"),
    "bool": (_bool, "true or false", ""),
    "tuple[int, ...]": (_ints, "a list of integers", "N,N"),
    "tuple[str, ...]": (_strs, "a list of strings", "TEXT"),
    "float | tuple[float, ...]": (_floats, f"a finite number, a list of one per member, {FORMS}", "X"),
    "dict[str, Any]": (_args, "key=value pairs of numbers, strings, lists", "K=V"),
}


def kind_of(f: Field[Any]) -> tuple[str, bool]:
    """The field's annotation without None, and whether None is allowed."""
    annotation = str(f.type)
    return annotation.removesuffix(" | None"), annotation.endswith(" | None")


def converted(f: Field[Any], value: Any) -> Any:
    """``value`` as the field's type.

    Raises:
        ValueError: the value is of another type. The message names the field, the value and what was expected.
    """
    kind, optional = kind_of(f)
    convert, wanted, _ = KINDS[kind]
    if value is None and optional:
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"{f.name} is {shown(value)}; expected {wanted}{' or none' if optional else ''}") from None


def scalar(text: str) -> Any:
    """The value of a flag's text, which is read as YAML is: 1e-3 and 10_000 are numbers, none is None, true is True.

    Raises:
        ValueError: YAML cannot read the text.
    """
    if text.lower() == "none":
        return None
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    try:
        return plain_yaml.load(text)
    except ValueError as error:
        raise ValueError(f"the value is {shown(text)}, which is not YAML ({error}); expected a plain value") from None


def parse_stage(text: str) -> tuple[int, dict[str, Any]]:
    """Read a stage of the curriculum.

    Args:
        text: 'STEP key=value ...', in which a colon counts as a space.

    Returns:
        The first step of the stage, and the arguments that it changes.

    Raises:
        ValueError: the text has another form; the message quotes it.
    """
    try:
        first, *pairs = text.replace(":", " ").split() or [""]
        try:
            step = _int(scalar(first))
        except (TypeError, ValueError, OverflowError):
            step = -1
        if step < 0:
            raise ValueError("which does not begin with a step")
        args: dict[str, Any] = {}
        for pair in pairs:
            key, separator, value = pair.partition("=")
            if not (key and separator):
                raise ValueError(f"in which {shown(pair)} is not key=value")
            if key in args:
                raise ValueError(f"which gives {key} twice")
            try:
                args[key] = _plain(scalar(value))
            except (TypeError, ValueError):
                raise ValueError(f"in which {shown(value)} is not a plain value") from None
    except ValueError as error:
        raise ValueError(f"curriculum holds {shown(text)}, {error}; expected 'STEP key=value ...'") from None
    return step, args


# ---- ranges ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The numbers, or the words, that a setting may be. None lies in every range."""

    least: float | None = None  # the smallest number allowed
    most: float | None = None  # the largest number allowed
    above: float | None = None  # a bound that numbers have to exceed
    below: float | None = None  # a bound that numbers have to stay under
    choices: tuple[str, ...] = ()  # the words allowed

    def holds(self, value: Any) -> bool:
        """Whether a value of the setting's type lies in the range, with every entry where it is a tuple."""
        if value is None:
            return True
        if isinstance(value, tuple):
            return all(map(self.holds, value))
        if self.choices:
            return value in self.choices
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def words(self) -> str:
        """The range in words, such as "at least 1" or "huber or mse"; "" where it has no bounds."""
        if self.choices:
            return " or ".join(filter(None, (", ".join(self.choices[:-1]), self.choices[-1])))
        if (self.least, self.most) == (0, 1):
            return "between 0 and 1"
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {end:,}" for words, end in ends.items() if end is not None)


def in_range(f: Field[Any], value: Any) -> None:
    """Refuse a value outside the field's range. The value has the field's type already.

    Raises:
        ValueError: the value lies outside the field's range. The message names the field, the value and the range.
    """
    allowed: Range = f.metadata["range"]
    if not allowed.holds(value):
        kind, optional = kind_of(f)
        sizes = "sizes of " if kind == "tuple[int, ...]" else ""
        raise ValueError(
            f"{f.name} is {shown(value)}; expected {sizes}{allowed.words}{', or none' if optional else ''}"
        )
