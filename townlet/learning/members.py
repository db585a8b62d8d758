"""Checks of values that every member has: seeds, numbers, and tensors with a row for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that no generator takes.

    Raises:
        ValueError: there are no seeds, or one of them is not an int in [0, 2**63).
    """
    if len(seeds) == 0:
        raise ValueError("seeds is empty; expected one seed per member")
    for seed in seeds:
        if not 0 <= int(seed) < 2**63 or int(seed) != seed:
            raise ValueError(f"seeds holds {seed!r}; expected ints in [0, 2**63)")


def per_member(name: str, value: float | Sequence[float] | Tensor, members: int) -> Tensor:
    """An argument as one number per member.

    Args:
        name: the argument's name, for the error.
        value: a number, or P numbers on any device.
        members: P.

    Returns:
        ``[P]`` float32 on the CPU.

    Raises:
        ValueError: the value has another shape.
    """
    out = torch.as_tensor(value, dtype=torch.float32, device="cpu")
    if out.dim() == 0:
        out = out.expand(members)
    if tuple(out.shape) != (members,):
        raise ValueError(f"{name} has shape {list(out.shape)}; expected one value or one per member, [{members}]")
    return out.clone()


def sums(value: Tensor) -> Tensor:
    """The sum of each member's numbers, by which one pass finds members whose numbers are not all finite.

    A sum that overflows is not finite either, which is as bad.

    Args:
        value: ``[P, ...]``.

    Returns:
        ``[P]``.
    """
    return value.detach().reshape(value.shape[0], -1).sum(1)


def refuse(what: str, bad: Tensor) -> None:
    """Refuse members whose values are not finite.

    Args:
        what: the name of the values, for the error.
        bad: ``[P]`` bool, true for such members.

    Raises:
        ValueError: there is such a member; the message names them.
    """
    if bool(bad.any()):
        members = ", ".join(str(int(p)) for p in bad.nonzero())
        raise ValueError(f"{what} of member {members} is not finite (NaN or infinity); its parameters were not updated")


def require_finite(what: str, value: Tensor) -> None:
    """Refuse values that are not finite.

    Args:
        what: the name of the values, for the error.
        value: ``[P, ...]``.

    Raises:
        ValueError: members hold NaN or infinity; the message names them.
    """
    totals = sums(value)
    if not math.isfinite(totals.sum().item()):
        refuse(what, ~totals.isfinite())
