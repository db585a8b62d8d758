"""What the parts of learning ask of values that every member has: seeds, numbers, tensors with a row for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that no generator takes.

    Raises:
        ValueError: there are none, or one of them is not an int in [0, 2**63).
    """
    if len(seeds) == 0:
        raise ValueError("seeds is empty; expected one seed per member")
    for seed in seeds:
        if not 0 <= int(seed) < 2**63 or int(seed) != seed:
            raise ValueError(f"seeds holds {seed!r}; expected ints in [0, 2**63)")


def per_member(name: str, value: float | Sequence[float] | Tensor, members: int) -> Tensor:
    """One float32 per member, [P], on the CPU.

    Args:
        name: of the argument, for the error.
        value: a number, or P numbers wherever they lie.
        members: P.

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
    """The sum of each member's numbers: value [P, ...] -> [P]. It is finite where they all are, in one pass.

    A sum that overflows counts as not finite, which is as bad.
    """
    return value.detach().reshape(value.shape[0], -1).sum(1)


def refuse(what: str, bad: Tensor) -> None:
    """Names the members whose values are not finite.

    Args:
        what: the values, for the error.
        bad: [P] bool.

    Raises:
        ValueError: there is such a member.
    """
    if bool(bad.any()):
        members = ", ".join(str(int(p)) for p in bad.nonzero())
        raise ValueError(f"{what} of member {members} is not finite (NaN or infinity); its parameters were not updated")


def require_finite(what: str, value: Tensor) -> None:
    """Refuses values [P, ...] that are not finite.

    Raises:
        ValueError: members hold NaN or infinity; they are named.
    """
    totals = sums(value)
    if not math.isfinite(totals.sum().item()):
        refuse(what, ~totals.isfinite())
