"""Describes faults of a world: which environment it was, what it did, and what was expected."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Space, Tuple

_STEP = "(observation, reward, terminated, truncated, info)"


class WorldError(ValueError):
    """One environment among several raised an error; the message says which."""


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper of one of a vector's environments.

    When the environment raises, the error says which one it was. What it returned last is kept for `fault`.

    Args:
        env: the environment.
        index: its number in the vector.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self.index = index
        self.returned: Any = None
        self.call = ""

    def reset(self, **arguments: Any) -> Any:
        self.call = "reset"
        try:
            self.returned = self.env.reset(**arguments)
        except Exception as error:
            raise WorldError(f"reset of environment {self.index} raised {raised(error)}") from error
        return self.returned

    def step(self, action: Any) -> Any:
        self.call = "step"
        try:
            self.returned = self.env.step(action)
        except Exception as error:
            raise WorldError(f"step of environment {self.index} with action {action} raised {raised(error)}") from error
        return self.returned

    def fault(self) -> str | None:
        """What is wrong with the form of the last thing that the environment returned; None where nothing is."""
        form = _STEP if self.call == "step" else "(observation, info)"
        if not isinstance(self.returned, tuple) or len(self.returned) != form.count(",") + 1:
            faults = [f"{self.returned!r}; expected {form}"]
        else:
            faults = list(_mismatches(self.observation_space, self.returned[0], "observation"))
            numbers = zip(("reward", "terminated", "truncated"), self.returned[1:-1], strict=False)
            faults += [f"{name} {value!r}; expected a number" for name, value in numbers if np.shape(value) != ()]
            faults += [f"info {self.returned[-1]!r}; expected a dict"] * (not isinstance(self.returned[-1], dict))
        return f"{self.call} of environment {self.index} returned {faults[0]}" if faults else None


def raised(error: Exception) -> str:
    """An exception in words: its type, its text, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _mismatches(space: Space[Any], value: Any, name: str) -> Iterator[str]:
    """Each way in which ``value`` differs from ``space`` in structure, shape or dtype."""
    if isinstance(space, (Dict, Tuple)):
        entries = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, entry in entries:
            try:
                part = value[key]
            except (KeyError, IndexError, TypeError):
                yield f"no {name}[{key!r}]; expected {entry}"
            else:
                yield from _mismatches(entry, part, f"{name}[{key!r}]")
    elif space.shape is not None and space.dtype is not None:
        try:
            array = np.asarray(value)
        except ValueError:
            yield f"{name} {value!r}; expected {space}"
        else:
            if array.shape != space.shape:
                yield f"{name} of shape {list(array.shape)}; expected {list(space.shape)}"
            elif not np.can_cast(array.dtype, space.dtype, "same_kind"):
                yield f"{name} of dtype {array.dtype}; expected {space.dtype}"
