"""``replay_write`` and ``replay_windows``: the inner loops of the replay buffer.

The operators are ``torch.ops.townlet.replay_write`` and ``replay_windows``. ``townlet.learning.replay`` says what the
rings mean. ``ReplayStores``, ``ReplayTables`` and ``ReplaySteps`` own the order of the operators' arguments. The
operators run on the CPU. On another device the buffer calls their twins, which take and return the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backend as backend  # loads the libraries that register torch.ops.townlet
from .types import ReplaySteps, ReplayStores, ReplayTables

_STORES = len(ReplayStores._fields)
_OUTPUTS = ("obs", "h", "c", "action", "reward", "terminated", "reset", "mask", "legal")
"""The order of what ``torch.ops.townlet.replay_windows`` returns."""


def replay_write(
    stores: ReplayStores,
    tables: ReplayTables,
    steps: ReplaySteps,
    *,
    first: int,
    streams: int,
    n: int,
    ring: int,
    stride: int,
    seq_len: int,
    closes: bool,
) -> None:
    """Writes n steps to each of ``streams`` streams from ``first`` on, all on the CPU.

    Args:
        stores: the buffer's rings, overwritten.
        tables: what the buffer knows of its streams and windows, overwritten but for ``max_priority``.
        steps: what is written.
        first: the first stream.
        streams: how many streams.
        n: how many steps each stream gets.
        ring: the length of a stream's ring.
        stride: the steps between the starts of windows.
        seq_len: the transitions in a window.
        closes: whether the next step of these streams must open an episode.

    Raises:
        ValueError: an observation is not finite, or a closed stream goes on without a reset. Nothing has been written
            then.
        RuntimeError: a tensor does not fit. Nothing has been written then.
    """
    torch.ops.townlet.replay_write(*stores, *tables, *steps, first, streams, n, ring, stride, seq_len, closes)


def replay_windows(
    stores: ReplayStores, slot: Tensor, start: Tensor, *, ring: int, stride: int, seq_len: int
) -> ReplaySteps:
    """Reads windows of S transitions out of the rings, all on the CPU.

    Args:
        stores: the buffer's rings.
        slot: ``[P, B]`` int64, the slot of each window among its member's.
        start: ``[P, B]`` int64, the step at which each window starts.
        ring: the length of a stream's ring.
        stride: the steps between the starts of windows.
        seq_len: S, the transitions in a window.

    Returns:
        Fields ``[P, B, S, ...]``; obs, reset and legal have S + 1 entries, and h and c ``[P, B, H]`` are the states
        before the first observation. ``legal`` is None where the stores keep none.

    Raises:
        RuntimeError: a slot or a start lies outside of the rings, or a tensor does not fit.
    """
    out = torch.ops.townlet.replay_windows(*stores, slot, start, ring, stride, seq_len)
    steps = ReplaySteps(**dict(zip(_OUTPUTS, out, strict=True)))
    return steps if stores.legal is not None else steps._replace(legal=None)


# ---- fake kernels ----


def _write_fake(*args: Any) -> None:
    return None


torch.library.register_fake("townlet::replay_write", _write_fake)


def _windows_fake(*args: Any) -> tuple[Tensor, ...]:
    stores, (slot, _, _, _, S) = ReplayStores(*args[:_STORES]), args[_STORES:]
    P, B = slot.shape
    rows = {"obs": S + 1, "reset": S + 1, "legal": S + 1, "h": None, "c": None}  # the others have S

    def window(name: str, store: Tensor | None) -> Tensor:
        if store is None:
            return stores.mask.new_empty(0)
        n = rows.get(name, S)
        dtype = torch.int64 if name == "action" else store.dtype
        return store.new_empty((P, B, *(() if n is None else (n,)), *store.shape[1:]), dtype=dtype)

    return tuple(window(name, getattr(stores, name)) for name in _OUTPUTS)


torch.library.register_fake("townlet::replay_windows", _windows_fake)
