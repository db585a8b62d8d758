"""``spatial_encode``: the encoder over the Town's window, its convolutions and its small layers, in one call.

The operators are ``torch.ops.townlet.spatial_encode`` and ``spatial_encode_backward``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from .._native import LANES
from . import reference
from .backend import kernel_fits, traced
from .checks import check_spatial_encode
from .types import SpatialWeights

_WEIGHTS = len(SpatialWeights._fields)


def spatial_encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> Tensor:
    """Features of observations that hold maps, a position, meters and what the place affords.

    The maps go through two 3x3 convolutions (padding 1) and a layer over all pixels, and the other numbers through a
    layer each. A ReLU follows each of them. Gradients reach the weights; those of ``obs`` only the twin has, which runs
    where ``obs`` requires them or where a layer's units are not a multiple of 16.

    Args:
        obs: ``[P, N, planes * height * width + K + 8 + 18]``, with the K, 8 and 18 of ``SpatialWeights``: the maps, one
            behind the other and rows first, then the other numbers. The dtype is that of the weights.
        weights: the encoders' weights, float32 (or float64, for the reference alone).
        height: rows of a map.
        width: columns of a map.

    Returns:
        Features ``[P, N, D]``; D is the sum of the units of the layer over all pixels and of the three small ones.

    Raises:
        ValueError: an argument does not fit; the message names it.
        RuntimeError: the gradient itself is differentiated (double backward).
    """
    check_spatial_encode(obs, weights, height, width)
    train = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    whole = all(w.shape[1] % 16 == 0 for w in weights[::2])  # the kernel's layers fill whole vectors
    if not whole or (torch.is_grad_enabled() and obs.requires_grad) or not kernel_fits("spatial_encode", obs):
        return reference.spatial_encode(obs, weights, height, width)
    eager = train and not traced()
    run = _SpatialEncode.apply if eager else torch.ops.townlet.spatial_encode
    features: Tensor = run(obs, *weights, height, width, train)[0]
    return features


# ---- fake kernels ----


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def saved_size(N: int, C0: int, C1: int, pixels: int) -> int:
    """Floats that ``spatial_encode`` keeps for the backward pass of one member with N observations."""
    blocks = _ceil(N, 4 * LANES)
    width = _ceil(_ceil(N, blocks), LANES) * LANES
    return blocks * (C0 + C1) * pixels * width


def _fake(obs: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    weights, (height, width, save) = SpatialWeights(*args[:_WEIGHTS]), args[_WEIGHTS:]
    P, N, _ = obs.shape
    C0, C1 = weights.conv0_w.shape[1], weights.conv1_w.shape[1]
    saved = obs.new_empty(P if save else 0, saved_size(N, C0, C1, height * width))
    return obs.new_empty(P, N, sum(w.shape[1] for w in weights[4::2])), saved


torch.library.register_fake("townlet::spatial_encode", _fake)


def _backward_fake(
    grad: Tensor,
    features: Tensor,
    saved: Tensor,
    obs: Tensor,
    conv0_w: Tensor,
    conv1_w: Tensor,
    window_w: Tensor,
    position_w: Tensor,
    meters_w: Tensor,
    affordance_w: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, ...]:
    weights = (conv0_w, conv1_w, window_w, position_w, meters_w, affordance_w)
    return tuple(obs.new_empty(shape) for w in weights for shape in (w.shape, w.shape[:2]))


torch.library.register_fake("townlet::spatial_encode_backward", _backward_fake)


# ---- backward ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    obs, *weights = inputs[: 1 + _WEIGHTS]
    ctx.size = inputs[1 + _WEIGHTS :][:2]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, obs, *weights[::2])


def _backward(ctx: Any, d_features: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.townlet.spatial_encode_backward(d_features, *ctx.saved_tensors, *ctx.size)
    return (None, *grads, None, None, None)


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError("townlet.spatial_encode: double backward is not supported")


torch.library.register_autograd("townlet::spatial_encode", _backward, setup_context=_setup)
torch.library.register_autograd("townlet::spatial_encode_backward", _no_double_backward)


class _SpatialEncode(torch.autograd.Function):
    """The same formula without the registration's bookkeeping."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        out = torch.ops.townlet.spatial_encode(*inputs)
        ctx.set_materialize_grads(False)
        _setup(ctx, inputs, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph: the gradients would pass for constants
            _no_double_backward(ctx)
        return _backward(ctx, *grads)
