"""``lstm_unroll`` and ``lstm_step``: a population's LSTM along sequences, and one step of it, episodes included.

The operators are ``torch.ops.townlet.lstm_unroll``, ``lstm_unroll_backward`` and, for packed weights, ``lstm_step``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from . import reference
from .backend import kernel_fits
from .checks import check_lstm_step, check_lstm_unroll
from .packing import PackedParams


def lstm_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The LSTM of P members along B sequences each, which starts anew wherever an episode does.

    The weights map one to one to those of ``torch.nn.LSTM`` (Hochreiter & Schmidhuber 1997, with the forget gate of
    Gers et al. 2000). Gradients reach x, h0, c0 and the weights.

    Args:
        x: ``[P, B, T, D]``, the inputs, float32 (or float64, for the reference alone; all tensors have one dtype).
        h0: ``[P, B, H]``, the hidden state before step 0.
        c0: ``[P, B, H]``, the cell state before step 0.
        w_ih: ``[P, 4H, D]``, with the gates in the order i, f, g, o.
        w_hh: ``[P, 4H, H]``.
        bias: ``[P, 4H]``, the sum of ``bias_ih`` and ``bias_hh``.
        reset: ``[P, B, T]`` bool, or None. Where it is set, the state is zeroed before step t.

    Returns:
        The outputs ``[P, B, T, H]``, and h and c after the last step, ``[P, B, H]`` each.

    Raises:
        ValueError: an argument does not fit; the message names it.
        RuntimeError: the gradient itself is differentiated (double backward).
    """
    check_lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
    if not kernel_fits("lstm_unroll", w_ih):
        return reference.lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
    save = torch.is_grad_enabled() and any(v.requires_grad for v in (x, h0, c0, w_ih, w_hh, bias))
    y, h, c, _ = torch.ops.townlet.lstm_unroll(x, h0, c0, w_ih, w_hh, bias, reset, save)
    return y, h, c


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor | PackedParams,
    w_hh: Tensor | None = None,
    bias: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM of P members in E environments each, as in ``lstm_unroll``.

    Args:
        x: ``[P, E, D]``, the inputs, float32 (or float64, for the reference alone; all tensors have one dtype).
        h: ``[P, E, H]``, the hidden state before the step, which is not written to.
        c: ``[P, E, H]``, the cell state before the step, which is not written to.
        w_ih: ``[P, 4H, D]``; or, in place of all three weights and then without gradients, a ``PackedParams``, so that
            acting does not pack anew at every step.
        w_hh: ``[P, 4H, H]``.
        bias: ``[P, 4H]``.
        reset: ``[P, E]`` bool, or None. Where it is set, the state is zeroed before the step.

    Returns:
        h and c after the step, ``[P, E, H]`` each.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    packed = w_ih if isinstance(w_ih, PackedParams) else None
    if isinstance(w_ih, PackedParams):
        w_ih, w_hh, bias = w_ih.params[:3]
    if w_hh is None or bias is None:
        missing = "w_hh" if w_hh is None else "bias"
        raise ValueError(f"{missing} is None; expected a tensor, since w_ih is not a PackedParams")
    check_lstm_step(x, h, c, w_ih, w_hh, bias, reset)
    if packed is not None and packed.compute_dtype != torch.float32:
        raise ValueError(f"w_ih is packed for {packed.compute_dtype}; expected torch.float32")
    if not kernel_fits("lstm_step", w_ih):
        return reference.lstm_step(x, h, c, w_ih, w_hh, bias, reset)
    if packed is not None and packed.panels is not None:
        return torch.ops.townlet.lstm_step(x.detach(), h.detach(), c.detach(), packed.panels, reset)
    first = None if reset is None else reset.unsqueeze(2)
    _, h, c = lstm_unroll(x.unsqueeze(2), h, c, w_ih, w_hh, bias, first)
    return h, c


# ---- fake kernels ----


def saved_size(x: Tensor, H: int) -> int:
    """Floats that ``lstm_unroll`` keeps for its backward pass; x ``[P, B, T, D]``."""
    P, B, T, D = x.shape
    step, rest = torch.ops.townlet.lstm_saved_size(int(D), int(H), x.device.type == "cuda")
    return P * B * (T * step + rest)


def _unroll_fake(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor,
    reset: Tensor | None,
    save: bool,
) -> tuple[Tensor, ...]:
    P, B, T, _ = x.shape
    H = w_hh.shape[2]
    saved = x.new_empty(saved_size(x, H) if save else 0)
    return x.new_empty(P, B, T, H), h0.new_empty(h0.shape), c0.new_empty(c0.shape), saved


torch.library.register_fake("townlet::lstm_unroll", _unroll_fake)


def _unroll_backward_fake(
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
    saved: Tensor,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, ...]:
    P, H4 = w_ih.shape[:2]
    return (*(v.new_empty(v.shape) for v in (x, dh, dc, w_ih, w_hh)), x.new_empty(P, H4))


torch.library.register_fake("townlet::lstm_unroll_backward", _unroll_backward_fake)


def _step_fake(x: Tensor, h: Tensor, c: Tensor, packed: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), c.new_empty(c.shape)


torch.library.register_fake("townlet::lstm_step", _step_fake)


# ---- backward ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, w_ih, w_hh, _, reset, _ = inputs
    saved = output[3]
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(saved, x, w_ih, w_hh, reset)


def _backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.townlet.lstm_unroll_backward(dy, dh, dc, *ctx.saved_tensors)
    return (*grads, None, None)


def _no_double_backward(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError("townlet.lstm_unroll: double backward is not supported")


torch.library.register_autograd("townlet::lstm_unroll", _backward, setup_context=_setup)
torch.library.register_autograd("townlet::lstm_unroll_backward", _no_double_backward)
