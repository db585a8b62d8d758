"""The encoder over the Town's window as an operator: checks, backend, autograd and fake kernels around
`torch.ops.townlet.spatial_encode` (`csrc/ops/spatial.cpp`); its readable twin is `townlet.reference.spatial_encode`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops, reference
from .params import SpatialWeights, check_spatial

_WEIGHTS = len(SpatialWeights._fields)


def spatial_encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> Tensor:
    """Features [P, N, D] of observations obs [P, N, planes * height * width + 2 + 8 + 18].

    Maps through two 3x3 convolutions (padding 1) and a layer over all pixels, the other numbers through a layer each,
    ReLU after all of them; D is the sum of the layers' units. Gradients reach the weights, and `obs` only in the twin.
    Errors: ValueError naming the argument.
    """
    check_spatial(obs, weights, height, width)
    train = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    whole = all(w.shape[1] % 16 == 0 for w in weights[::2])  # the kernel's layers fill whole vectors
    if not whole or (torch.is_grad_enabled() and obs.requires_grad) or not ops._kernel_fits("spatial_encode", obs):
        return reference.spatial_encode(obs, weights, height, width)
    eager = train and not (torch.compiler.is_compiling() or ops._transforming())
    run = _SpatialEncode.apply if eager else torch.ops.townlet.spatial_encode
    features: Tensor = run(obs, *weights, height, width, train)[0]
    return features


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def _saved_size(P: int, N: int, C0: int, C1: int, pixels: int) -> int:
    blocks = _ceil(N, 4 * ops.LANES)
    width = _ceil(_ceil(N, blocks), ops.LANES) * ops.LANES
    return blocks * (C0 + C1) * pixels * width


@torch.library.register_fake("townlet::spatial_encode")
def _fake(obs, *args):
    weights, (height, width, save) = SpatialWeights(*args[:_WEIGHTS]), args[_WEIGHTS:]
    P, N, _ = obs.shape
    C0, C1 = weights.conv0_w.shape[1], weights.conv1_w.shape[1]
    saved = obs.new_empty(P if save else 0, _saved_size(P, N, C0, C1, height * width))
    return obs.new_empty(P, N, sum(w.shape[1] for w in weights[4::2])), saved


@torch.library.register_fake("townlet::spatial_encode_backward")
def _backward_fake(grad, features, saved, obs, w0, w1, ww, wp, wm, wa, height, width):
    return tuple(obs.new_empty(shape) for w in (w0, w1, ww, wp, wm, wa) for shape in (w.shape, w.shape[:2]))


def _setup(ctx, inputs, output) -> None:
    obs, *weights = inputs[: 1 + _WEIGHTS]
    ctx.size = inputs[1 + _WEIGHTS :][:2]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, obs, *weights[::2])


def _backward(ctx, d_features, _):
    grads = torch.ops.townlet.spatial_encode_backward(d_features, *ctx.saved_tensors, *ctx.size)
    return (None, *grads, None, None, None)


def _no_double_backward(ctx, *_):
    raise RuntimeError("townlet.spatial_encode: double backward is not supported")


torch.library.register_autograd("townlet::spatial_encode", _backward, setup_context=_setup)
torch.library.register_autograd("townlet::spatial_encode_backward", _no_double_backward)


class _SpatialEncode(torch.autograd.Function):
    """The same formula without the registration's bookkeeping."""

    @staticmethod
    def forward(ctx, *inputs):
        out = torch.ops.townlet.spatial_encode(*inputs)
        ctx.set_materialize_grads(False)
        _setup(ctx, inputs, out)
        return out

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():  # create_graph: the gradients would pass for constants
            _no_double_backward(ctx)
        return _backward(ctx, *grads)
