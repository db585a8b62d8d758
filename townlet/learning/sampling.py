"""Which windows of a replay buffer a sample consists of: drawn uniformly, or by priority (Schaul et al. 2016).

Symbols: P members, B windows in a batch, S transitions in a window, E environments per member, T steps in the ring of
an environment, K window slots of an environment, H LSTM units, A actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PRIORITY_FLOOR = 1e-6
"""The number that is added to every priority, so that a window without error can still be drawn."""


class ReplaySample(NamedTuple):
    """B windows for each of P members.

    Attributes:
        obs: ``[P, B, S+1, obs_size]`` float32.
        h0: ``[P, B, H]`` float32, with `c0` the state before the first observation.
        c0: ``[P, B, H]`` float32.
        action: ``[P, B, S]`` int64.
        reward: ``[P, B, S]`` float32.
        terminated: ``[P, B, S]`` bool, whether the episode truly ended with the transition.
        reset: ``[P, B, S+1]`` bool, whether the observation is the first of an episode.
        mask: ``[P, B, S]`` bool, False for steps that nobody acted on.
        weight: ``[P, B]`` float32, the importance-sampling weights; ones when windows are drawn uniformly.
        legal: ``[P, B, S+1, A]`` bool, or None.
        slot: ``[P, B]`` int64, where the window's priority lies: env * K + (start % T) / stride.
        start: ``[P, B]`` int64, the step of the stream at which the window starts.
    """

    obs: Tensor
    h0: Tensor
    c0: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    reset: Tensor
    mask: Tensor
    weight: Tensor
    legal: Tensor | None
    slot: Tensor
    start: Tensor


def draw_windows(
    starts: Tensor, priority: Tensor | None, draws: Tensor, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick windows with replacement, uniformly or in proportion to (priority + PRIORITY_FLOOR)**alpha.

    With priorities, a window's importance weight (Schaul et al. 2016) is (N * probability)**-beta over the member's N
    windows, divided by the largest in the member's batch. Without them all weights are 1.

    Args:
        starts: ``[P, E*K]`` int64, the step at which each slot's window starts; -1 where the slot has none. Every
            member has at least one window.
        priority: ``[P, E*K]`` float64; None draws uniformly.
        draws: ``[P, B]`` float64 in [0, 1), the numbers that decide.
        alpha: the exponent of the priority.
        beta: the exponent of the importance weight.

    Returns:
        The slots ``[P, B]`` int64, the starts of their windows ``[P, B]`` int64, and the weights ``[P, B]`` float64.
    """
    held = starts >= 0
    mass = held.double()
    if priority is not None:
        mass *= (priority + PRIORITY_FLOOR) ** alpha
    edges = mass.cumsum(1)
    total = edges[:, -1:]
    # strictly below the total even after rounding, so that the slot found has mass
    point = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    slot = torch.searchsorted(edges, point, right=True)
    weight = torch.ones_like(draws)
    if priority is not None:
        probability = mass.gather(1, slot) / total
        weight = (held.sum(1, keepdim=True) * probability) ** -beta
        weight /= weight.amax(1, keepdim=True)
    return slot, starts.gather(1, slot), weight
