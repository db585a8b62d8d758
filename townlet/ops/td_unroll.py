"""``td_unroll``: the loss, the TD errors and the gradients of recurrent Q-networks in one call.

The operator is ``torch.ops.townlet.td_unroll``. Its forward pass makes the gradients of ``sum(loss)`` as well, and its
backward pass scales them. ``torch.ops.townlet.td_unroll_into`` leaves the weights' gradients in the caller's
buffers, and ``torch.ops.townlet.td_unroll_scratch`` tells how much memory a call takes beside its outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .backend import kernel_fits, traced
from .checks import check_grads, check_td_unroll, check_td_unroll_scratch
from .packing import PackedParams
from .types import RecurrentQParams, SequenceBatch, TDOutput, TDSpec


class Arguments(NamedTuple):
    """The arguments of ``torch.ops.townlet.td_unroll`` by the names and in the order of its schema."""

    w_ih: Tensor
    w_hh: Tensor
    bias: Tensor
    w_fc: Tensor | None
    b_fc: Tensor | None
    w_adv: Tensor
    b_adv: Tensor
    w_val: Tensor | None
    b_val: Tensor | None
    target: Tensor | None
    features_online: Tensor
    features_target: Tensor | None
    h0: Tensor
    c0: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    reset: Tensor
    mask: Tensor
    weight: Tensor
    legal: Tensor | None
    gamma: Tensor
    n_step: int
    burn_in: int
    double_q: bool
    rescale_eps: float
    huber_delta: float
    eta: float
    bf16: bool
    param_grads: bool
    feature_grads: bool

    @property
    def online(self) -> RecurrentQParams:
        """The online weights, which come first."""
        return RecurrentQParams._make(self[:WEIGHTS])


WEIGHTS = len(RecurrentQParams._fields)
FEATURES = Arguments._fields.index("features_online")
OUTPUTS = len(TDOutput._fields)
"""How many results come first; the gradient of features_online and those of the weights follow."""


def td_unroll(
    online: RecurrentQParams,
    target: RecurrentQParams | PackedParams | None,
    batch: SequenceBatch,
    spec: TDSpec,
    *,
    grads: RecurrentQParams | None = None,
) -> TDOutput:
    """Loss and TD errors of P recurrent Q-networks on B sequences each, back-propagation through time included.

    The online and the target network each unroll their own features under their own weights, from the stored state and
    with their own carried state, burn-in included. The target takes n steps, double Q-learning, value rescaling,
    importance weights, and resets and masks inside the sequence. The papers are Hausknecht & Stone 2015 (DRQN) and
    Kapturowski et al. 2019 (R2D2).

    Only the gradient of ``loss`` exists. It reaches ``online`` and ``batch.features_online``, but not the target, and
    nothing before the end of the burn-in. It scales with the incoming gradient of ``loss[p]``.

    Args:
        online: the weights that are trained, float32 (or float64, for the reference alone).
        target: the weights that bootstrap, plain or packed by ``pack``; None lets the online network's own detached
            values do so.
        batch: the sequences; ``SequenceBatch`` says which shapes and dtypes they have.
        spec: how target and loss are formed.
        grads: buffers like ``online``, in which the rows of a member are contiguous. The compiled kernel on the CPU
            leaves the weights' gradients of ``loss.sum()`` in them; where nothing scales the loss, the backward pass
            hands out these very tensors instead of fresh ones. This call overwrites them, not the backward pass.

    Returns:
        Loss ``[P]``, TD errors ``[P, B, S]``, priorities ``[P, B]``, Q-values ``[P, B, S]`` and final states
        ``[P, B, H]``.

    Raises:
        ValueError: an argument does not fit, for example an action outside [0, A) at a valid position; the message
            names it.
        RuntimeError: the gradient itself is differentiated (double backward).
    """
    packed = target if isinstance(target, PackedParams) else None
    plain = packed.params if packed is not None else target
    assert not isinstance(plain, PackedParams)
    size = check_td_unroll(online, plain, batch, spec)
    if not kernel_fits("td_unroll", online.w_ih, spec.backend):
        return reference.td_unroll(online, plain, batch, spec)
    bf16 = spec.compute_dtype == torch.bfloat16
    if packed is not None and packed.compute_dtype != spec.compute_dtype:
        raise ValueError(f"target is packed for {packed.compute_dtype}; expected {spec.compute_dtype}, as in spec")
    panels = packed.panels if packed is not None else None
    if plain is not None and panels is None:
        panels = torch.ops.townlet.pack(*(None if v is None else v.detach() for v in plain), bf16)
    x = batch.features_online
    gamma = spec.gamma.to(x) if isinstance(spec.gamma, Tensor) else x.new_full((size.P,), spec.gamma)
    grad = torch.is_grad_enabled()
    param_grads = grad and any(v is not None and v.requires_grad for v in online)
    feature_grads = grad and batch.features_online.requires_grad
    eager = (param_grads or feature_grads) and not traced()
    run = _TDUnroll.apply if eager else torch.ops.townlet.td_unroll
    home = None
    if grads is not None:
        check_grads(grads, online)
    if eager and param_grads and grads is not None and online.w_ih.device.type == "cpu":
        home = tuple(g for g in grads if g is not None)
    huber_delta = spec.huber_delta if spec.loss == "huber" else 0.0
    arguments = (
        *online, panels, *batch, gamma, spec.n_step, spec.burn_in, spec.double_q, spec.rescale_eps, huber_delta,
        spec.eta, bf16, param_grads, feature_grads,
    )  # fmt: skip
    out = run(*arguments, *((home,) if eager else ()))
    return TDOutput(out[0], *(v.detach() for v in out[1:OUTPUTS]))


def td_unroll_scratch(
    P: int,
    B: int,
    S: int,
    D: int,
    H: int,
    A: int,
    *,
    F: int | None = None,
    dueling: bool = False,
    burn_in: int = 0,
    compute_dtype: torch.dtype = torch.float32,
    param_grads: bool = True,
    feature_grads: bool = False,
) -> int:
    """How much scratch memory a call of ``td_unroll`` with these sizes takes on the CPU, beside its outputs.

    A pool keeps the scratch for the next call. A target network adds nothing to it.

    Args:
        P: members.
        B: sequences per member.
        S: transitions in a sequence.
        D: LSTM input features.
        H: LSTM hidden size.
        A: actions.
        F: units of the head's hidden layer, or None without one.
        dueling: whether there is a value stream.
        burn_in: the transitions that only warm the state up.
        compute_dtype: ``TDSpec.compute_dtype``.
        param_grads: whether a weight requires a gradient.
        feature_grads: whether ``features_online`` requires one.

    Returns:
        Bytes.

    Raises:
        ValueError: a size is below 1, or the burn-in does not fit S; the message names it.
    """
    sizes = {"P": P, "B": B, "S": S, "D": D, "H": H, "A": A, "F": 1 if F is None else F}
    check_td_unroll_scratch(sizes, burn_in)
    bf16 = compute_dtype == torch.bfloat16
    return torch.ops.townlet.td_unroll_scratch(
        P, B, S, D, H, F or 0, A, dueling, burn_in, bf16, param_grads, feature_grads
    )


# ---- fake kernels ----


def _fake(*args: Any) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    x, state = a.features_online, a.h0.shape
    P, B, S = a.action.shape
    values = [x.new_empty(shape) for shape in ((P,), (P, B, S), (P, B), (P, B, S), state, state)]
    d_x = x.new_empty(x.shape if a.feature_grads else (0,))
    grads = [x.new_empty(w.shape if a.param_grads and w is not None else (0,)) for w in a.online]
    return (*values, d_x, *grads)


torch.library.register_fake("townlet::td_unroll", _fake)


def _into_fake(*args: Any) -> tuple[Tensor, ...]:
    *others, feature_grads, _ = args
    return _fake(*others, False, feature_grads)[: OUTPUTS + 1]


torch.library.register_fake("townlet::td_unroll_into", _into_fake)


# ---- backward ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = Arguments(*inputs)
    ctx.param_grads, ctx.feature_grads = a.param_grads, a.feature_grads
    ctx.present = [i for i, w in enumerate(a.online) if w is not None and a.param_grads]
    ctx.inputs = len(inputs)
    ctx.home = ()  # gradients that lie elsewhere than in the outputs
    ctx.mark_non_differentiable(*output[1:])
    d_x, *weights = output[OUTPUTS:]
    ctx.save_for_backward(d_x, *(weights[i] for i in ctx.present if weights))


def _backward(ctx: Any, d_loss: Tensor, *_: Any, unscaled: bool = False) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph: the gradients would pass for constants
        raise RuntimeError("townlet.td_unroll: double backward is not supported")
    d_x, *d_weights = ctx.saved_tensors
    d_weights = d_weights or ctx.home
    out: list[Tensor | None] = [None] * ctx.inputs
    if unscaled:
        out[FEATURES] = d_x if ctx.feature_grads else None
        for i, d in zip(ctx.present, d_weights, strict=True):
            out[i] = d
        return tuple(out)
    scale = d_loss.view(-1, 1, 1)
    out[FEATURES] = d_x * scale.unsqueeze(-1) if ctx.feature_grads else None
    for i, d in zip(ctx.present, d_weights, strict=True):
        out[i] = d * (scale if d.dim() == 3 else scale.squeeze(-1))
    return tuple(out)


torch.library.register_autograd("townlet::td_unroll", _backward, setup_context=_setup)


class _TDUnroll(torch.autograd.Function):
    """The same formula without the registration's bookkeeping, and with a place for the gradients of the weights."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *inputs, home = arguments
        if home is None:
            out = torch.ops.townlet.td_unroll(*inputs)
        else:
            *others, _, feature_grads = inputs
            out = torch.ops.townlet.td_unroll_into(*others, feature_grads, home)
        ctx.set_materialize_grads(False)  # else fifteen tensors of zeros are made for outputs without a gradient
        _setup(ctx, tuple(inputs), out)
        ctx.home = home or ()
        return out

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> Any:
        # of a plain loss.sum(): nothing to multiply by.  Not asked of an accelerator, which would have to be waited for
        unscaled = d_loss.device.type == "cpu" and bool((d_loss == 1.0).all())
        return (*_backward(ctx, d_loss, unscaled=unscaled), None)
