"""``adam_step``: clipping and Adam for all members in one call.

The operator is ``torch.ops.townlet.adam_step``. It has no gradient, and so no backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .backend import kernel_fits
from .checks import check_adam_step


@torch.no_grad()
def adam_step(
    weights: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    clip_norm: Tensor | None,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> Tensor:
    """Clips the gradients of P members by their global norms, then makes one step of Adam (Kingma & Ba 2015) for all.

    The square root is taken of the bias-corrected v, and eps is added to it, as in ``torch.optim.Adam``. Nothing is
    written for any member where a norm is not finite.

    Args:
        weights: ``[P, N]``, contiguous, overwritten; float32 (or float64, for the reference alone).
        m: ``[P, N]``, the running mean of the gradients, contiguous, overwritten.
        v: ``[P, N]``, the running mean of their squares, contiguous, overwritten.
        grad: ``[P, N]``, the gradients.
        lr: ``[P]``, the learning rates.
        clip_norm: ``[P]``, the largest norm of each member's gradient, or None for no clipping.
        betas: the decay rates of m and v.
        eps: the offset of the denominator.
        step: the number of this step, from 1 on.

    Returns:
        The norms of the gradients before clipping, ``[P]``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_adam_step(weights, m, v, grad, lr, clip_norm, step)
    if not kernel_fits("adam_step", weights):
        return reference.adam_step(weights, m, v, grad, lr, clip_norm, betas, eps, step)
    norm = torch.ops.townlet.adam_step(weights, m, v, grad, lr, clip_norm, *betas, eps, step)
    torch.autograd.graph.increment_version((weights, m, v))  # the operator writes below what counts versions
    return norm


# ---- fake kernel ----


def _fake(weights: Tensor, *_: Any) -> Tensor:
    return weights.new_empty(weights.shape[0])


torch.library.register_fake("townlet::adam_step", _fake)
