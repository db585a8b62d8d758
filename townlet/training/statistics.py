"""What accumulates between two records of a run: means of the learner's metrics, returns of the training episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..envs.adapter import WorldStep


class Means:
    """Means of named ``[P]`` tensors over many calls. The sums stay on the tensors' device until they are asked for."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums = torch.empty(0)  # float64 [names, P]
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one set of values, name -> ``[P]``. A set with other names starts anew."""
        rows = torch.stack(list(values.values())).double()
        if self.names != tuple(values):
            self.names, self.sums, self.count = tuple(values), torch.zeros_like(rows), 0
        self.sums += rows
        self.count += 1

    def drain(self) -> dict[str, np.ndarray]:
        """The means since the last call, name -> float64 ``[P]``; an empty dict when nothing was added."""
        out = dict(zip(self.names, (self.sums / max(self.count, 1)).cpu().numpy(), strict=True))
        self.names, self.sums, self.count = (), torch.empty(0), 0
        return out

    def state_dict(self) -> dict[str, Any]:
        """The count, and the sums by name."""
        return {"count": self.count, "sums": {n: s.clone() for n, s in zip(self.names, self.sums, strict=True)}}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over what ``state_dict`` returned."""
        sums = state["sums"]
        self.names, self.count = tuple(sums), state["count"]
        self.sums = torch.stack(list(sums.values())).to(device) if sums else torch.empty(0)


class EpisodeStatistics:
    """Returns and lengths of training episodes: running for each environment, summed for each member until drained.

    Args:
        members: P.
        num_envs: E, the number of environments of each member.

    Attributes:
        recent: the members' recent scores, float64 ``[P]``: an average over about the last 50 episodes of each, NaN
            before the first.
    """

    def __init__(self, members: int, num_envs: int) -> None:
        self.shape = (members, num_envs)
        self.returns, self.lengths = np.zeros(self.shape), np.zeros(self.shape)
        self.sums = {k: np.zeros(members) for k in ("episodes", "train_return", "train_length", "train_survival")}
        self.has_survival = False
        self.recent = np.full(members, math.nan)

    @property
    def score_name(self) -> str:
        """What ``recent`` is: "survival" or "return"."""
        return "survival" if self.has_survival else "return"

    def add(self, step: WorldStep) -> None:
        """Count one step of all environments. A step that only begins an episode does not count."""
        P, E = self.shape
        over = step.over
        counted = (over | ~step.first).reshape(self.shape)
        np.add(self.returns, step.reward.reshape(self.shape), out=self.returns, where=counted)
        self.lengths += counted
        ended = over.nonzero()[0]
        if not ended.size:
            return
        member = ended // E

        def collect(name: str, values: np.ndarray) -> np.ndarray:
            own = values.ravel()[ended]
            self.sums[name] += np.bincount(member, own, minlength=P)
            return own

        self.sums["episodes"] += np.bincount(member, minlength=P)
        score = collect("train_return", self.returns)
        collect("train_length", self.lengths)
        if step.survival is not None:
            self.has_survival = True
            score = collect("train_survival", step.survival)
        count = np.bincount(member, minlength=P)
        now = np.bincount(member, score, minlength=P) / np.maximum(count, 1)
        keep = np.where(np.isnan(self.recent), 0.0, 0.98**count)
        self.recent = np.where(count > 0, keep * np.nan_to_num(self.recent) + (1 - keep) * now, self.recent)
        self.returns.flat[ended] = self.lengths.flat[ended] = 0.0

    def drain(self) -> dict[str, np.ndarray]:
        """The number of episodes and the means per episode since the last call: column -> float64 ``[P]``.

        A mean is NaN where no episode ended.
        """
        count = self.sums["episodes"]
        with np.errstate(invalid="ignore"):
            out = {k: v.copy() if k == "episodes" else v / count for k, v in self.sums.items()}
        if not self.has_survival:
            del out["train_survival"]
        for value in self.sums.values():
            value[:] = 0.0
        return out

    def forget_running(self) -> None:
        """Drop what the running episodes have gathered, because they were cut."""
        self.returns[:], self.lengths[:] = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Copies of all counters."""
        return {
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "sums": {k: v.copy() for k, v in self.sums.items()},
            "has_survival": self.has_survival,
            "recent": self.recent.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.returns, self.lengths = state["returns"], state["lengths"]
        self.sums = dict(state["sums"])
        self.has_survival, self.recent = state["has_survival"], state["recent"]
