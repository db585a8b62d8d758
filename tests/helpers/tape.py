"""A recorder for the CPU, which keeps what a CUDA graph keeps: addresses and numbers.

It notes every operation below autograd with its tensors; a replay runs the same operations on the same tensors and
writes results to where the first ones were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from townlet.learning.cuda_graph import Step


class Tape(TorchDispatchMode):
    """Operations with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def storages(tree: Any) -> set[int]:
    return {v.untyped_storage().data_ptr() for v in tree_leaves(tree) if isinstance(v, Tensor)}


class TapeRecorder:
    """A recorder for the CPU."""

    def __init__(self) -> None:
        self.replays = 0

    def run(self, step: Step) -> dict[str, Tensor]:
        return step()

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]:
        with Tape() as tape:
            out = step()

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, old in tape.calls:
                new = func(*args, **kwargs)
                mine = storages((args, kwargs))
                for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True):
                    if isinstance(a, Tensor) and not storages(a) & mine:  # views and results in place are there already
                        a.copy_(b)

        return out, replay
