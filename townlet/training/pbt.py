"""Population based training (Jaderberg et al. 2017): now and then the worst members become copies of the best.

Selection is by truncation. Each member of the lowest fraction takes over the weights, target weights and optimiser
moments of a member drawn from the highest fraction (exploit). It also takes over that member's hyper-parameters, each
multiplied by a factor or drawn anew (explore). A member keeps its own replay: it learned off-policy from what older
weights did before, and still does. The recurrent state that it acts with becomes zero, since the new weights cannot
read what the old ones wrote.

The draws of an event depend on the seed and the event's number alone, so a resumed run repeats them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..support.files import replacing

_STREAM = 0x706274  # distinct from the streams that members and worlds draw from

_UPPER = {"gamma": 1.0, "epsilon_end": 1.0}
"""The upper bounds of the hyper-parameters that have one. The others may be any positive number."""


class PopulationBasedTraining:
    """Decides which member copies which, and how the copied hyper-parameters change.

    Args:
        initial: the hyper-parameters to explore: name -> the members' values at the start, ``[P]``.
        seed: the seed of the draws.
        fraction: the share of members that copy, and the share that is copied from, in (0, 0.5]. Each is at least one
            member.
        perturb: a copied hyper-parameter is multiplied by this factor or by its inverse. For gamma, 1 - gamma is.
        resample: the probability of drawing the hyper-parameter anew instead, log-uniformly between the smallest and
            the largest initial value.

    Attributes:
        lineage: a row for each copy: event, step, member, parent, both scores, and each hyper-parameter before and
            after.
    """

    def __init__(
        self, initial: Mapping[str, Sequence[float]], *, seed: int, fraction: float, perturb: float, resample: float
    ) -> None:
        self.seed, self.fraction, self.perturb, self.resample = seed, fraction, perturb, resample
        self.ranges = {name: _range(name, np.asarray(values)) for name, values in initial.items()}
        self.lineage: list[dict[str, float]] = []

    def step(self, event: int, env_steps: int, scores: np.ndarray, hyper: Mapping[str, np.ndarray]) -> list[list[int]]:
        """Carry out one event: write the new values into ``hyper``, and the copies into the lineage.

        Args:
            event: the event's number.
            env_steps: the environment steps that each member has taken.
            scores: float64 ``[P]``. Nothing happens while one is NaN because its member has no score yet.
            hyper: name -> float64 ``[P]``.

        Returns:
            Two lists of the same length: the members that copy, and their parents.
        """
        if np.isnan(scores).any():
            return [[], []]
        key = np.array([self.seed, _STREAM], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, event]))
        draws = generator.random((scores.size, 1 + 2 * len(self.ranges)))  # for every member, whether it copies or not
        copies: list[list[int]] = [[], []]
        before = {name: hyper[name].copy() for name in self.ranges}
        for member, parent in truncation(scores, self.fraction, draws[:, 0]):
            row: dict[str, float] = {"event": event, "step": env_steps, "member": member, "parent": parent}
            row |= {"score": float(scores[member]), "parent_score": float(scores[parent])}
            for i, name in enumerate(self.ranges):
                hyper[name][member] = self._explore(name, before[name][parent], *draws[member, 1 + 2 * i : 3 + 2 * i])
                row |= {f"{name}_before": float(before[name][member]), f"{name}_parent": float(before[name][parent])}
                row[f"{name}_after"] = float(hyper[name][member])
            self.lineage.append(row)
            copies[0].append(member)
            copies[1].append(parent)
        return copies

    def _explore(self, name: str, value: float, choice: float, where: float) -> float:
        """The parent's value, changed as two draws in [0, 1) decide."""
        low, high = self.ranges[name]
        if choice < self.resample:
            z = low ** (1 - where) * high**where
        else:
            z = _free(name, value) * (self.perturb if where < 0.5 else 1 / self.perturb)
        return float(_free(name, min(z, _UPPER.get(name, np.inf))))

    def write(self, path: Path) -> None:
        """Write lineage.csv in one move, so that a reader never sees half of it."""
        names = [f"{name}_{when}" for name in self.ranges for when in ("before", "parent", "after")]
        with replacing(path) as file:
            rows = csv.DictWriter(file, ["event", "step", "member", "parent", "score", "parent_score", *names])
            rows.writeheader()
            rows.writerows(self.lineage)

    def state_dict(self) -> dict[str, Any]:
        """The lineage. Everything else follows from the settings."""
        return {"lineage": [dict(row) for row in self.lineage]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.lineage = [dict(row) for row in state["lineage"]]


def truncation(scores: np.ndarray, fraction: float, draws: np.ndarray) -> list[tuple[int, int]]:
    """Pair each member of the lowest ``fraction`` with one drawn from the highest.

    Args:
        scores: float64 ``[P]``. Of members with equal scores the one with the lower index counts as worse.
        fraction: the share of members that copy, and the share that is copied from.
        draws: ``[P]`` in [0, 1); ``draws[p]`` chooses the parent of member p.

    Returns:
        The pairs (member, parent). A parent that is not better than the member is left out.
    """
    order = np.argsort(scores, kind="stable")
    n = max(1, int(scores.size * fraction))
    pairs = [(int(member), int(order[-n:][int(draws[member] * n)])) for member in order[:n]]
    return [(member, parent) for member, parent in pairs if scores[parent] > scores[member]]


def _free(name: str, value: float) -> float:
    """The positive number that is perturbed, and back again: 1 - gamma for gamma, else the hyper-parameter itself."""
    return 1.0 - value if name == "gamma" else value


def _range(name: str, initial: np.ndarray) -> tuple[float, float]:
    z = np.array([_free(name, v) for v in initial])
    return float(z.min()), float(z.max())
