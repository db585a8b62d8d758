"""Population based training (Jaderberg et al. 2017): now and then the worst members become copies of the best.

Truncation selection: each member of the lowest fraction takes over weights, target weights and optimiser moments of
one drawn from the highest fraction (exploit), and its hyper-parameters, each multiplied by a factor or drawn anew
(explore). A member keeps its own replay: it learned off-policy from what older weights did before, and still does. The
recurrent state it acts with becomes zero, since the new weights cannot read what the old ones wrote.

The draws of an event depend on the seed and the event's number alone, so that a resumed run repeats them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..support.files import replacing

_STREAM = 0x706274  # apart from what members and worlds draw from

_UPPER = {"gamma": 1.0, "epsilon_end": 1.0}
"""Upper bounds of the hyper-parameters that have one; the others may be any positive number."""


class PopulationBasedTraining:
    """Who copies whom, and what becomes of the hyper-parameters.

    Args:
        initial: name -> value of every member at the start [P], of the hyper-parameters to explore.
        seed: of the draws.
        fraction: share of members that copy and share that is copied from, in (0, 0.5]; at least one member each.
        perturb: factor, or its inverse, on a copied hyper-parameter; on 1 - gamma for gamma.
        resample: probability of drawing it instead between the smallest and the largest initial value, evenly in the
            logarithm.

    Attributes: ``lineage``, one row per copy: event, step, member, parent, their scores, hyper-parameters before and
        after.
    """

    def __init__(
        self, initial: Mapping[str, Sequence[float]], *, seed: int, fraction: float, perturb: float, resample: float
    ) -> None:
        self.seed, self.fraction, self.perturb, self.resample = seed, fraction, perturb, resample
        self.ranges = {name: _range(name, np.asarray(values)) for name, values in initial.items()}
        self.lineage: list[dict[str, float]] = []

    def step(self, event: int, env_steps: int, scores: np.ndarray, hyper: Mapping[str, np.ndarray]) -> list[list[int]]:
        """One event: writes new values into ``hyper`` and the lineage.

        Args:
            event: its number.
            env_steps: when it happens.
            scores: [P]; where one is NaN, because a member has none yet, nothing happens.
            hyper: name -> [P].

        Returns:
            [members that copy, their parents].
        """
        if np.isnan(scores).any():
            return [[], []]
        key = np.array([self.seed, _STREAM], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, event]))
        draws = generator.random((scores.size, 1 + 2 * len(self.ranges)))  # of every member, whether it copies or not
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
        """The parent's value changed, from two draws in [0, 1)."""
        low, high = self.ranges[name]
        if choice < self.resample:
            z = low ** (1 - where) * high**where
        else:
            z = _free(name, value) * (self.perturb if where < 0.5 else 1 / self.perturb)
        return float(_free(name, min(z, _UPPER.get(name, np.inf))))

    def write(self, path: Path) -> None:
        """lineage.csv, in one move."""
        names = [f"{name}_{when}" for name in self.ranges for when in ("before", "parent", "after")]
        with replacing(path) as file:
            rows = csv.DictWriter(file, ["event", "step", "member", "parent", "score", "parent_score", *names])
            rows.writeheader()
            rows.writerows(self.lineage)

    def state_dict(self) -> dict[str, Any]:
        """The lineage; all else follows from the settings."""
        return {"lineage": [dict(row) for row in self.lineage]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.lineage = [dict(row) for row in state["lineage"]]


def truncation(scores: np.ndarray, fraction: float, draws: np.ndarray) -> list[tuple[int, int]]:
    """(member, parent) of truncation selection: each of the lowest ``fraction`` and one of the highest.

    draws: [P] in [0, 1), of which member p's chooses its parent. Of equals the lower index counts as worse; a parent
    that is not better is not copied.
    """
    order = np.argsort(scores, kind="stable")
    n = max(1, int(scores.size * fraction))
    pairs = [(int(member), int(order[-n:][int(draws[member] * n)])) for member in order[:n]]
    return [(member, parent) for member, parent in pairs if scores[parent] > scores[member]]


def _free(name: str, value: float) -> float:
    """The positive number that is perturbed, from a hyper-parameter, or back: 1 - gamma in place of gamma."""
    return 1.0 - value if name == "gamma" else value


def _range(name: str, initial: np.ndarray) -> tuple[float, float]:
    z = np.array([_free(name, v) for v in initial])
    return float(z.min()), float(z.max())
