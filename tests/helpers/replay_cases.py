"""Buffers and steps that the replay tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from townlet.learning.replay import SequentialReplayBuffer

OBS, A, H = 2, 3, 2


def buffer(members: int = 1, num_envs: int = 1, seq_len: int = 3, **arguments: Any) -> SequentialReplayBuffer:
    arguments = {"capacity": 60 * num_envs, "seeds": list(range(5, 5 + members))} | arguments
    return SequentialReplayBuffer(
        members=members, num_envs=num_envs, obs_size=OBS, n_actions=A, hidden_size=H, seq_len=seq_len, **arguments
    )


def step(value: float, shape: tuple[int, int] = (1, 1), **fields: Any) -> dict[str, Any]:
    """One step of every stream, whose fields all tell `value` unless said otherwise."""
    full = torch.full(shape, float(value))
    out: dict[str, Any] = {
        "obs": full.unsqueeze(-1).expand(*shape, OBS),
        "reset": torch.zeros(shape, dtype=torch.bool),
        "legal": None,
        "h": full.unsqueeze(-1).expand(*shape, H) + 0.25,
        "c": full.unsqueeze(-1).expand(*shape, H) + 0.5,
        "action": torch.full(shape, int(value) % A),
        "reward": full,
        "terminated": torch.zeros(shape, dtype=torch.bool),
        "mask": torch.ones(shape, dtype=torch.bool),
    }
    for name, v in fields.items():
        out[name] = torch.full(shape, v) if isinstance(v, bool) else v
    return out


def filled(prioritised: bool, members: int = 1, steps: int = 21, **arguments: Any) -> SequentialReplayBuffer:
    """10 windows per member (S = 3, stride 2), from step 0 to step 18."""
    replay = buffer(members, seq_len=2, stride=2, prioritised=prioritised, **arguments)
    for value in range(steps):
        replay.add(**step(value, (members, 1)))
    return replay


def set_priorities(replay: SequentialReplayBuffer, values: Tensor) -> None:
    """Priority values[start / 2] for the window at `start`, through the public way."""
    for _ in range(20):
        sample = replay.sample(64)
        replay.update_priorities(sample, values[sample.start // 2])
