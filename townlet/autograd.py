"""Backward formulas of `torch.ops.townlet`; the forward has made the gradients already, or saved what they need."""

from __future__ import annotations

import torch

from . import _native as _native  # loads the libraries that register torch.ops.townlet

TD_WEIGHTS = 9
"""td_unroll's arguments begin with the online weights, w_ih to b_val."""
TD_FEATURES = 10
"""Then come the target's panels, then features_online."""


def _td_setup(ctx, inputs, output) -> None:
    ctx.param_grads, ctx.feature_grads = inputs[-2:]
    ctx.present = [i for i, w in enumerate(inputs[:TD_WEIGHTS]) if w is not None and ctx.param_grads]
    ctx.inputs = len(inputs)
    ctx.home = ()  # gradients that lie elsewhere than in the outputs
    ctx.mark_non_differentiable(*output[1:])
    weights = output[7:]
    ctx.save_for_backward(output[6], *(weights[i] for i in ctx.present if weights))


def _td_backward(ctx, d_loss, *_, unscaled=False):
    if torch.is_grad_enabled():  # create_graph: the gradients would pass for constants
        raise RuntimeError("townlet.td_unroll: double backward is not supported")
    d_x, *d_weights = ctx.saved_tensors
    d_weights = d_weights or ctx.home
    out = [None] * ctx.inputs
    if unscaled:
        out[TD_FEATURES] = d_x if ctx.feature_grads else None
        for i, d in zip(ctx.present, d_weights, strict=True):
            out[i] = d
        return tuple(out)
    scale = d_loss.view(-1, 1, 1)
    out[TD_FEATURES] = d_x * scale.unsqueeze(-1) if ctx.feature_grads else None
    for i, d in zip(ctx.present, d_weights, strict=True):
        out[i] = d * (scale if d.dim() == 3 else scale.squeeze(-1))
    return tuple(out)


torch.library.register_autograd("townlet::td_unroll", _td_backward, setup_context=_td_setup)


class TDUnroll(torch.autograd.Function):
    """The same formula without the registration's bookkeeping, and with a place for the gradients of the weights."""

    @staticmethod
    def forward(ctx, *arguments):
        *inputs, home = arguments
        if home is None:
            out = torch.ops.townlet.td_unroll(*inputs)
        else:
            *others, _, feature_grads = inputs
            out = torch.ops.townlet.td_unroll_into(*others, feature_grads, home)
        ctx.set_materialize_grads(False)  # else fifteen tensors of zeros are made for outputs without a gradient
        _td_setup(ctx, inputs, out)
        ctx.home = home or ()
        return out

    @staticmethod
    def backward(ctx, d_loss, *_):
        # of a plain loss.sum(): nothing to multiply by.  Not asked of an accelerator, which would have to be waited for
        unscaled = d_loss.device.type == "cpu" and bool((d_loss == 1.0).all())
        return (*_td_backward(ctx, d_loss, unscaled=unscaled), None)


def _unroll_setup(ctx, inputs, output) -> None:
    x, _, _, w_ih, w_hh, _, reset, _ = inputs
    saved = output[3]
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(saved, x, w_ih, w_hh, reset)


def _unroll_backward(ctx, dy, dh, dc, _):
    grads = torch.ops.townlet.lstm_unroll_backward(dy, dh, dc, *ctx.saved_tensors)
    return (*grads, None, None)


torch.library.register_autograd("townlet::lstm_unroll", _unroll_backward, setup_context=_unroll_setup)


def _no_double_backward(ctx, *_):
    raise RuntimeError("townlet.lstm_unroll: double backward is not supported")


torch.library.register_autograd("townlet::lstm_unroll_backward", _no_double_backward)
