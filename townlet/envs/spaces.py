"""Turns the observations and actions of any world into what a network takes: rows of float32, and action numbers.

An observation's row holds its parts one after the other, in the order of the space:

    Box             Its numbers, the last axis fastest. uint8 and integer images are scaled to 0..1 by the space's
                    bounds; small integers (below ``MOST_SYMBOLS``: symbols, counts) stay as they are.
    Discrete        A one-hot vector.
    MultiDiscrete   A one-hot vector for each entry.
    MultiBinary     0 or 1 for each entry.
    Dict, Tuple     The parts of their entries, at any depth.
    text            Nothing: it is left out, and ``dropped`` names it.

``parts`` tells what lies where in the row. Actions are numbered 0..n-1. The numbers of MultiDiscrete and MultiBinary
spaces count through all combinations, the last entry fastest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

MOST_NUMBERS = 1_000_000
"""The most numbers that an observation's row may have."""
MOST_ACTIONS = 4096
"""The most combinations that a MultiDiscrete or MultiBinary action space may have."""
MOST_SYMBOLS = 32
"""Integers below this are never scaled."""

OBSERVATIONS = "Box (numbers), Discrete, MultiBinary, MultiDiscrete, and Dict or Tuple of these"
ACTIONS = "Discrete, MultiDiscrete or MultiBinary"

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Part:
    """A part of an observation and where in the row it lies."""

    path: Path  # the keys and indices that lead to it; () for the whole observation
    kind: str  # image (a Box of three axes), numbers (any other Box), one-hot or bits
    space: Space[Any]  # its own space; `space.shape` is what the row's numbers were before
    start: int  # the place of its first number in the row
    size: int  # how many numbers it has
    scaled: bool = False  # whether the numbers are scaled to 0..1 by the space's bounds

    @property
    def slice(self) -> slice:
        """The place of its numbers in the row."""
        return slice(self.start, self.start + self.size)

    @property
    def name(self) -> str:
        """The part's name for a message, such as observation['image']."""
        return "observation" + "".join(f"[{key!r}]" for key in self.path)


class ObservationRows:
    """Turns batches of observations of one space into rows.

    Args:
        space: the space of a single environment's observation.
        name: the world's id, for error messages.

    Attributes:
        parts: the parts of a row, in order.
        size: how many numbers a row has.
        dropped: the names of the text parts that are left out.

    Raises:
        ValueError: the space is not supported. The message names the world, the part, the space and what is supported.
    """

    def __init__(self, space: Space[Any], name: str = "world") -> None:
        self.dropped: list[str] = []
        parts, start = [], 0
        for path, leaf in _leaves(space):
            part = _part(path, leaf, start)
            if part is not None:
                parts.append(part)
                start += part.size
            elif _is_text(leaf):
                self.dropped.append(Part(path, "text", leaf, start, 0).name)
            else:
                where = f" {Part(path, '', leaf, start, 0).name} of" if path else ""
                raise ValueError(f"{name}:{where} observation space {leaf} is not supported; expected {OBSERVATIONS}")
        if not parts:
            raise ValueError(f"{name}: observation space {space} holds no numbers; expected {OBSERVATIONS}")
        if start > MOST_NUMBERS:
            raise ValueError(
                f"{name}: observation space {space} takes {start:,} numbers; expected at most {MOST_NUMBERS:,}"
            )
        self.parts, self.size = tuple(parts), start
        self._as_is = len(parts) == 1 and isinstance(parts[0].space, (Box, MultiBinary)) and not parts[0].scaled
        self._writers = [_writer(part) for part in parts]

    def __call__(self, batch: Any, n: int) -> np.ndarray:
        """The rows of ``n`` observations.

        Args:
            batch: the observations, batched as ``VectorEnv`` does it.
            n: how many they are.

        Returns:
            ``[n, size]`` float32; the batch itself where it is such an array already.

        Raises:
            ValueError: an entry is missing, or has another shape or type than the space says; the message names it.
        """
        if self._as_is:
            return self._values(self.parts[0], batch, n).reshape(n, self.size).astype(np.float32, copy=False)
        rows = np.zeros((n, self.size), dtype=np.float32)
        for part, write in zip(self.parts, self._writers, strict=True):
            write(self._values(part, batch, n), rows[:, part.slice])
        return rows

    @staticmethod
    def _values(part: Part, batch: Any, n: int) -> np.ndarray:
        try:
            for key in part.path:
                batch = batch[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{part.name} is missing") from None
        values = np.asarray(batch)
        shape = (n, *(part.space.shape or ()))
        if values.shape != shape:
            raise ValueError(f"{part.name} has shape {list(values.shape)}; expected {list(shape)}")
        wanted = "numbers" if isinstance(part.space, Box) else "integers"
        if values.dtype.kind not in ("biuf" if wanted == "numbers" else "biu"):
            raise ValueError(f"{part.name} has dtype {values.dtype}; expected {wanted}")
        return values


def _leaves(space: Space[Any], path: Path = ()) -> Iterator[tuple[Path, Space[Any]]]:
    """Every space that has no entries, with the path that leads to it."""
    if isinstance(space, Dict):
        for key, entry in space.spaces.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(space, Tuple):
        for i, entry in enumerate(space.spaces):
            yield from _leaves(entry, (*path, i))
    else:
        yield path, space


def _is_text(space: Space[Any]) -> bool:
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"


def _part(path: Path, space: Space[Any], start: int) -> Part | None:
    """The part of a space without entries; None where the space is not supported."""
    if isinstance(space, Box) and np.dtype(space.dtype).kind in "biuf" and 0 not in space.shape:
        kind = "image" if len(space.shape) == 3 else "numbers"
        return Part(path, kind, space, start, math.prod(space.shape), _is_scaled(space))
    if isinstance(space, Discrete):
        return Part(path, "one-hot", space, start, int(space.n))
    if isinstance(space, MultiDiscrete):
        return Part(path, "one-hot", space, start, int(space.nvec.sum()))
    if isinstance(space, MultiBinary) and 0 not in space.shape:
        return Part(path, "bits", space, start, math.prod(space.shape))
    return None


def _is_scaled(space: Box) -> bool:
    whole = np.dtype(space.dtype).kind in "iu" and (space.dtype == np.uint8 or len(space.shape) == 3)
    return bool(whole and space.is_bounded() and max(space.high.max(), -int(space.low.min())) >= MOST_SYMBOLS)


def _writer(part: Part) -> Any:
    """The function ``write(values, out)`` that puts values ``[n, ...]`` into zeros ``[n, size]``."""
    space, size = part.space, part.size
    if isinstance(space, (Discrete, MultiDiscrete)):
        return _one_hot_writer(part, space)
    if not part.scaled:

        def write(values: np.ndarray, out: np.ndarray) -> None:
            out[:] = values.reshape(-1, size)

        return write
    assert isinstance(space, Box)
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    shift, factor = low.astype(np.float32), (1.0 / np.maximum(high - low, 1.0)).astype(np.float32)

    def write_scaled(values: np.ndarray, out: np.ndarray) -> None:
        out[:] = values.reshape(-1, size)
        out -= shift
        out *= factor

    return write_scaled


def _one_hot_writer(part: Part, space: Discrete | MultiDiscrete) -> Any:
    nvec = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec).reshape(-1)
    first = np.atleast_1d(space.start).reshape(-1)
    offset = np.cumsum(nvec) - nvec

    def write(values: np.ndarray, out: np.ndarray) -> None:
        digits = values.reshape(len(values), -1).astype(np.int64) - first
        wrong = ((digits < 0) | (digits >= nvec)).any(axis=1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(f"{part.name} of environment {i} is {values[i].tolist()}; expected a value of {space}")
        np.put_along_axis(out, digits + offset, 1.0, axis=1)

    return write


class ActionNumbers:
    """Numbers the actions of a space.

    Args:
        space: the space of a single environment's action.
        name: the world's id, for error messages.

    Attributes:
        n: how many actions there are.

    Raises:
        ValueError: the space is not supported, or has more than ``MOST_ACTIONS`` combinations.
    """

    def __init__(self, space: Space[Any], name: str = "world") -> None:
        self.space = space
        if isinstance(space, Discrete):
            self.n = int(space.n)
            return
        if not isinstance(space, (MultiDiscrete, MultiBinary)):
            kind = "continuous action space" if isinstance(space, Box) else "action space"
            raise ValueError(f"{name}: {kind} {space} is not supported; expected {ACTIONS}")
        entries = space.nvec.reshape(-1) if isinstance(space, MultiDiscrete) else np.full(math.prod(space.shape), 2)
        self._entries = [int(n) for n in entries]
        self.n = math.prod(self._entries)
        if not 1 <= self.n <= MOST_ACTIONS:
            raise ValueError(
                f"{name}: action space {space} has {self.n:,} combinations; expected at most {MOST_ACTIONS:,}"
            )

    def __call__(self, number: np.ndarray) -> np.ndarray:
        """The actions ``[N, ...]`` that the numbers ``[N]`` stand for, as ``VectorEnv.step`` takes them."""
        space = self.space
        if isinstance(space, Discrete):
            return number + int(space.start) if space.start else number
        digits = np.stack(np.unravel_index(number, self._entries), axis=-1).reshape(len(number), *(space.shape or ()))
        if isinstance(space, MultiDiscrete):
            digits = digits + space.start
        return digits.astype(space.dtype)
