"""Spreads of a setting over the members: a range such as ``log:1e-4:1e-3`` becomes one value per member."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FORMS = "log:A:B or lin:A:B (spaced from A to B over the members), loguniform:A:B or uniform:A:B (drawn from the seed)"


@dataclass(frozen=True)
class Spread:
    """A range, and how the members lie in it."""

    kind: str  # lin and log space the members evenly; uniform and loguniform draw them
    low: float  # A, one end of the range
    high: float  # B, the other end, which may be below A

    @classmethod
    def parse(cls, text: str) -> Spread:
        """The range that ``kind:A:B`` stands for.

        Raises:
            ValueError: the text has another form, or A and B are no ends of such a range.
        """
        kind, *ends = text.split(":")
        low, high = (float(end) for end in ends)
        if kind not in ("lin", "log", "uniform", "loguniform") or not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(text)
        if kind.startswith("log") and not (low > 0 and high > 0):
            raise ValueError(text)
        return cls(kind, low, high)

    def values(self, name: str, members: int, seed: int) -> tuple[float, ...]:
        """One value per member. A drawn value depends only on the setting's name and the member's own seed.

        Args:
            name: the name of the setting.
            members: P, how many there are.
            seed: the seed of member 0; member p draws from seed + p.

        Returns:
            P values.

        Raises:
            ValueError: the members are to be spaced, but there is only one.
        """
        if self.kind in ("lin", "log"):
            if members == 1:
                raise ValueError(f"{name} is {self.kind}:{self.low:g}:{self.high:g}; expected 2 members or more for it")
            share = np.arange(members) / (members - 1)
        else:
            draws = [np.random.default_rng([seed + p, *name.encode()]).random() for p in range(members)]
            share = np.array(draws)
        if self.kind.startswith("log"):
            values = np.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            values = (1 - share) * self.low + share * self.high
        return tuple(float(f"{v:.6g}") for v in values)  # hits the ends exactly, and a person can read the numbers


def named(member: int, hyper: Mapping[str, Sequence[float] | np.ndarray]) -> str:
    """A member's name for messages: "member 3", and its values of the settings in which members differ.

    Args:
        member: its number, from 0.
        hyper: settings, name -> ``[P]`` values.
    """
    own = [f"{name}={values[member]:.4g}" for name, values in hyper.items() if len(set(values)) > 1]
    return " ".join([f"member {member}", *own])
