"""The operators, as people call them: checks, choice of backend, autograd and fake kernels around `torch.ops.townlet`.

Schemas and CPU implementations are in `csrc/ops.cpp`; the readable twin of each operator is in `townlet.reference`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import _native as _native  # loads the libraries that register torch.ops.townlet
from . import reference
from .params import (
    ActorParams,
    ActorSizes,
    ActOutput,
    RecurrentQParams,
    SequenceBatch,
    TDOutput,
    TDSpec,
    check_act,
    check_actor,
    check_adam,
    check_epsilon,
    check_grads,
    check_params,
    check_step,
    check_td,
    check_unroll,
)

__all__ = [
    "ActOutput",
    "ActorParams",
    "PackedActor",
    "PackedParams",
    "RecurrentQParams",
    "SequenceBatch",
    "TDOutput",
    "TDSpec",
    "act",
    "adam_step",
    "lstm_step",
    "lstm_unroll",
    "pack",
    "pack_actor",
    "td_unroll",
    "td_unroll_scratch",
]
_ISA_BITS = {"portable": 1, "avx2": 2, "avx512": 4, "avx512_bf16": 8}
LANES: int = torch.ops.townlet.lanes()
"""Floats in a vector of the kernels in use."""
ISA_LEVELS: tuple[str, ...] = tuple(k for k, v in _ISA_BITS.items() if torch.ops.townlet.isa_levels() & v)
"""Instruction sets that were built and that this CPU runs."""
ISA: str = next(k for k, v in _ISA_BITS.items() if v == torch.ops.townlet.isa())
"""Instruction set of the kernels in use; the environment variable TOWNLET_ISA forces one that the CPU runs."""


class PackedParams(NamedTuple):
    """A snapshot of P networks in the kernel's own layout, made by `pack`; changes of the weights do not reach it."""

    params: RecurrentQParams
    panels: Tensor | None  # [P, N] float32; None where only the reference fits (float64, no kernel for the device)
    compute_dtype: torch.dtype


_announced: set[str] = set()
_ON_CUDA = frozenset(["pack", "td_unroll", "lstm_unroll", "lstm_step"])
"""Operators compiled for CUDA; the form of the others there is the twin, a few of torch's own operations."""
_transforming = torch._C._are_functorch_transforms_active  # inside torch.func.grad and the like


def _kernel_fits(op: str, like: Tensor, backend: str = "auto") -> bool:
    if backend == "reference":
        return False
    where = like.device.type
    if like.dtype == torch.float32 and (where == "cpu" or (where == "cuda" and _native.CUDA and op in _ON_CUDA)):
        return True
    if where == "cuda" and op not in _ON_CUDA:
        return False
    what = f"{str(like.dtype).removeprefix('torch.')} tensors on {where}"
    if where == "cuda" and not _native.CUDA:
        what += f" (no CUDA kernels: {_native.WHY_NOT_CUDA})"
    if backend == "kernel":
        places = "cpu or cuda" if _native.CUDA else "cpu"
        raise ValueError(f"spec.backend is 'kernel', but no compiled {op} takes {what}; expected float32 on {places}")
    if f"{op} {what}" not in _announced:
        _announced.add(f"{op} {what}")
        warnings.warn(f"townlet: no compiled {op} takes {what}; running the slow reference", stacklevel=3)
    return False


def pack(params: RecurrentQParams, compute_dtype: torch.dtype = torch.float32, *, copy: bool = True) -> PackedParams:
    """Packs P networks once, to be passed to `td_unroll` as `target` many times (until the next sync).

    params: float32 (or float64, reference only). compute_dtype: that of the TDSpec it will be used with. copy: False
    keeps the tensors themselves for where the reference runs, not copies; whoever writes to them packs anew.
    Errors: ValueError naming the parameter that does not fit.
    """
    if copy:
        kept = reference.pack(params)
    else:
        check_params("", params)
        kept = RecurrentQParams._make(None if v is None else v.detach() for v in params)
    panels = None
    if _kernel_fits("pack", params.w_ih):
        panels = torch.ops.townlet.pack(*kept, compute_dtype == torch.bfloat16)
    return PackedParams(kept, panels, compute_dtype)


def td_unroll(
    online: RecurrentQParams,
    target: RecurrentQParams | PackedParams | None,
    batch: SequenceBatch,
    spec: TDSpec,
    *,
    grads: RecurrentQParams | None = None,
) -> TDOutput:
    """Loss and TD errors of P recurrent Q-networks on B sequences each, back-propagation through time included.

    Online and target network each unroll their own features under their own weights, from the stored state and with
    their own carried state, burn-in included; `target=None` bootstraps from the online network's own detached values.
    n-step double-Q targets with value rescaling, importance weights, resets and masks inside the sequence: see
    `SequenceBatch`, `TDSpec` and `TDOutput` for shapes and meanings.

    Gradient: of `loss` alone, with respect to `online` and `batch.features_online`; none through the target, none
    through burn-in. It scales with the incoming gradient of `loss[p]`. Double backward raises RuntimeError.

    grads: buffers like `online`, rows of a member contiguous, in which the compiled kernel on the CPU leaves the
    weights' gradients of `loss.sum()`; where nothing scales the loss, backward hands out these very tensors instead of
    fresh ones. They are overwritten by this call, not by backward.

    Errors: ValueError naming the argument, what came and what was expected; an action outside [0, A) at a valid
    position is one of them. Papers: Hausknecht & Stone 2015 (DRQN), Kapturowski et al. 2019 (R2D2).
    """
    packed = target if isinstance(target, PackedParams) else None
    plain = packed.params if packed is not None else target
    assert not isinstance(plain, PackedParams)
    size = check_td(online, plain, batch, spec)
    if not _kernel_fits("td_unroll", online.w_ih, spec.backend):
        return reference.td_unroll(online, plain, batch, spec)
    bf16 = spec.compute_dtype == torch.bfloat16
    if packed is not None and packed.compute_dtype != spec.compute_dtype:
        raise ValueError(f"target was packed for {packed.compute_dtype}; expected {spec.compute_dtype}, as in spec")
    panels = packed.panels if packed is not None else None
    if plain is not None and panels is None:
        panels = torch.ops.townlet.pack(*(None if v is None else v.detach() for v in plain), bf16)
    x = batch.features_online
    gamma = spec.gamma.to(x) if isinstance(spec.gamma, Tensor) else x.new_full((size.P,), spec.gamma)
    grad = torch.is_grad_enabled()
    param_grads = grad and any(v is not None and v.requires_grad for v in online)
    feature_grads = grad and batch.features_online.requires_grad
    # the registered autograd formula costs ten times as much per call, but compilers and torch.func can see through it
    eager = (param_grads or feature_grads) and not (torch.compiler.is_compiling() or _transforming())
    run = _TDUnroll.apply if eager else torch.ops.townlet.td_unroll
    home = None
    if grads is not None:
        check_grads(grads, online)
    if eager and param_grads and grads is not None and online.w_ih.device.type == "cpu":
        home = tuple(g for g in grads if g is not None)
    try:
        out = run(
            *online,
            panels,
            *batch[:-1],
            batch.legal,
            gamma,
            spec.n_step,
            spec.burn_in,
            spec.double_q,
            spec.rescale_eps,
            spec.huber_delta if spec.loss == "huber" else 0.0,
            spec.eta,
            bf16,
            param_grads,
            feature_grads,
            *((home,) if eager else ()),
        )
    except RuntimeError as error:
        if "batch.action is out of range" in str(error):
            raise ValueError(str(error).splitlines()[0]) from None
        raise
    return TDOutput(out[0], *(v.detach() for v in out[1:6]))


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
    """Bytes of scratch memory that a call of `td_unroll` with these sizes takes on the CPU, beside its outputs.

    F: units of the head's hidden layer, None without one. The pool keeps the scratch for the next call. A target
    network adds nothing to it. Errors: ValueError naming a size below 1.
    """
    for name, value in {"P": P, "B": B, "S": S, "D": D, "H": H, "A": A, "F": 1 if F is None else F}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if not 0 <= burn_in < S:
        raise ValueError(f"burn_in is {burn_in}; expected 0 <= burn_in < S = {S}")
    bf16 = compute_dtype == torch.bfloat16
    return torch.ops.townlet.td_unroll_scratch(
        P, B, S, D, H, F or 0, A, dueling, burn_in, bf16, param_grads, feature_grads
    )


def lstm_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The population-batched LSTM that knows episodes: x [P, B, T, D] -> (y [P, B, T, H], h_T, c_T [P, B, H]).

    h0, c0 [P, B, H]; w_ih [P, 4H, D], w_hh [P, 4H, H], bias [P, 4H] as in `torch.nn.LSTM` (bias = bias_ih + bias_hh);
    reset [P, B, T] bool or None: where set, the state is zeroed before step t. Gradients reach x, h0, c0 and weights.
    Errors: ValueError naming the argument.
    """
    check_unroll(x, h0, c0, w_ih, w_hh, bias, reset)
    if not _kernel_fits("lstm_unroll", w_ih):
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
    """One acting step for E environments of P members: x [P, E, D], h and c [P, E, H] -> (h, c).

    reset [P, E] bool or None: where set, the state is zeroed before the step. In place of the three weights a
    `PackedParams` may stand (then without gradients), so that acting does not pack anew at every step.
    Errors: ValueError naming the argument.
    """
    packed = w_ih if isinstance(w_ih, PackedParams) else None
    if isinstance(w_ih, PackedParams):
        w_ih, w_hh, bias = w_ih.params[:3]
    if w_hh is None or bias is None:
        missing = "w_hh" if w_hh is None else "bias"
        raise ValueError(f"{missing} is None; expected a tensor, since w_ih is not a PackedParams")
    check_step(x, h, c, w_ih, w_hh, bias, reset)
    if packed is not None and packed.compute_dtype != torch.float32:
        raise ValueError(f"w_ih was packed for {packed.compute_dtype}; expected torch.float32")
    if not _kernel_fits("lstm_step", w_ih):
        return reference.lstm_step(x, h, c, w_ih, w_hh, bias, reset)
    if packed is not None and packed.panels is not None:
        return torch.ops.townlet.lstm_step(x.detach(), h.detach(), c.detach(), packed.panels, reset)
    first = None if reset is None else reset.unsqueeze(2)
    _, h, c = lstm_unroll(x.unsqueeze(2), h, c, w_ih, w_hh, bias, first)
    return h, c


class PackedActor(NamedTuple):
    """A snapshot of P networks for `act`, made by `pack_actor`; changes of the weights do not reach it."""

    sizes: ActorSizes
    encoder: Tensor | None  # [P, N] float32; None without layers
    panels: Tensor | None  #  [P, N] float32; None where only the reference fits
    params: ActorParams | None  # for the reference


@torch.no_grad()
def pack_actor(params: ActorParams) -> PackedActor:
    """Packs P networks once for many acting steps. Errors: ValueError naming the parameter that does not fit."""
    sizes = check_actor(params)
    if not _kernel_fits("act", params.recurrent.w_ih):
        layers = tuple((w.detach().clone(), b.detach().clone()) for w, b in params.layers)
        return PackedActor(sizes, None, None, ActorParams(layers, reference.pack(params.recurrent)))
    encoder = None
    if params.layers:
        weights, biases = zip(*params.layers, strict=True)
        encoder = torch.ops.townlet.pack_encoder(weights, biases)
    return PackedActor(sizes, encoder, torch.ops.townlet.pack(*params.recurrent, False), None)


@torch.no_grad()
def act(
    actor: PackedActor,
    obs: Tensor,
    h: Tensor,
    c: Tensor,
    reset: Tensor | None = None,
    legal: Tensor | None = None,
    epsilon: Tensor | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
) -> ActOutput:
    """One acting step for E environments of P members: encoder, LSTM, head, epsilon-greedy choice.

    Args:
        actor: the networks, from `pack_actor`.
        obs: [P, E, obs_size]; h, c: [P, E, H], the state before obs, which is not written to.
        reset: [P, E] bool or None: where set, the state is zeroed before the step.
        legal: [P, E, A] bool or None; a row without a legal action counts as all legal.
        epsilon: [P, E] float64 or None, the probability of a uniform draw over the legal actions.
        seeds: [P] int64, with epsilon. Environment e of member p draws as a function of (seeds[p], step, e) alone.
        step: how many steps were made before.

    Ties go to the lowest action. Errors: ValueError naming the argument.
    """
    s = actor.sizes
    if actor.panels is None:
        assert actor.params is not None
        return reference.act(actor.params, obs, h, c, reset, legal, epsilon, seeds, step)
    check_act(s, torch.float32, obs, h, c, reset, legal, epsilon, seeds)
    try:
        out = torch.ops.townlet.act(
            obs, h, c, reset, legal, epsilon, seeds, step,
            actor.encoder, s.widths, actor.panels, s.head, s.A, s.dueling,
        )  # fmt: skip
    except RuntimeError as error:
        if epsilon is not None and "epsilon is" in str(error):
            check_epsilon(epsilon)
        raise
    return ActOutput(*out)


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
    """Clips the gradients of P members by their global norms, then one step of Adam (Kingma & Ba 2015) for all.

    weights, m, v [P, N]: overwritten; grad [P, N]; lr [P]; clip_norm [P], or None for no clipping; step counts from 1.
    The square root is taken of the bias-corrected v and eps added to it, as in `torch.optim.Adam`.

    Returns: the norms before clipping [P]. Where one of them is not finite, nothing has been written.
    Errors: ValueError naming the argument.
    """
    check_adam(weights, m, v, grad, lr, clip_norm, step)
    if not _kernel_fits("adam_step", weights):
        return reference.adam_step(weights, m, v, grad, lr, clip_norm, betas, eps, step)
    norm = torch.ops.townlet.adam_step(weights, m, v, grad, lr, clip_norm, *betas, eps, step)
    torch.autograd.graph.increment_version((weights, m, v))  # the operator writes below what counts versions
    return norm


# ---- fake kernels: shapes only ----


def _up(n: int) -> int:
    return (n + LANES - 1) // LANES * LANES


@torch.library.register_fake("townlet::pack")
def _pack_fake(w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val, bf16):
    if w_ih.device.type == "cuda":  # the weights themselves, one part behind the other
        parts = (w_ih, w_hh, bias, w_fc, b_fc, w_adv, b_adv, w_val, b_val)
        return w_ih.new_empty(w_ih.shape[0], sum(w[0].numel() for w in parts if w is not None))
    P, _, D = w_ih.shape
    H, F, outputs = w_hh.shape[2], w_adv.shape[2], w_adv.shape[1] + (w_val is not None)
    pack = torch.ops.townlet.bf16_pack() if bf16 else 1

    def words(n):
        return (n + pack - 1) // pack

    fc = 0 if w_fc is None else (words(H) + 1) * _up(F)
    return w_ih.new_empty(P, 4 * _up(H) * (words(D) + words(H) + 1) + fc + (words(F) + 1) * _up(outputs))


_WEIGHTS = 9  # w_ih .. b_val lead td_unroll's arguments
_FEATURES = 10  # then the target's panels, then features_online


@torch.library.register_fake("townlet::td_unroll")
def _td_unroll_fake(*args):
    weights, x, h0, action = args[:_WEIGHTS], args[_FEATURES], args[12], args[14]
    param_grads, feature_grads = args[-2:]
    P, B, S = action.shape
    values = [x.new_empty(shape) for shape in ((P,), (P, B, S), (P, B), (P, B, S), h0.shape, h0.shape)]
    d_x = x.new_empty(x.shape if feature_grads else (0,))
    grads = [x.new_empty(w.shape if param_grads and w is not None else (0,)) for w in weights]
    return (*values, d_x, *grads)


@torch.library.register_fake("townlet::td_unroll_into")
def _td_unroll_into_fake(*args):
    *others, feature_grads, _ = args
    return _td_unroll_fake(*others, False, feature_grads)[:7]


@torch.library.register_fake("townlet::lstm_unroll")
def _lstm_unroll_fake(x, h0, c0, w_ih, w_hh, bias, reset, save):
    P, B, T, D = x.shape
    H = w_hh.shape[2]
    row = (_up(D + _up(H)) // LANES // 2 * 2 + 1) * LANES  # an odd number of vectors
    saved = P * B * (T * (row + 5 * _up(H)) + (T + 1) * _up(H))
    if x.device.type == "cuda":
        saved = P * B * (6 * T + 1) * H
    return x.new_empty(P, B, T, H), h0.new_empty(h0.shape), c0.new_empty(c0.shape), x.new_empty(saved if save else 0)


@torch.library.register_fake("townlet::lstm_unroll_backward")
def _lstm_unroll_backward_fake(dy, dh, dc, saved, x, w_ih, w_hh, reset):
    P, H4 = w_ih.shape[:2]
    return (*(v.new_empty(v.shape) for v in (x, dh, dc, w_ih, w_hh)), x.new_empty(P, H4))


@torch.library.register_fake("townlet::lstm_step")
def _lstm_step_fake(x, h, c, packed, reset):
    return h.new_empty(h.shape), c.new_empty(c.shape)


@torch.library.register_fake("townlet::pack_encoder")
def _pack_encoder_fake(weights, biases):
    return weights[0].new_empty(weights[0].shape[0], sum((w.shape[2] + 1) * _up(w.shape[1]) for w in weights))


@torch.library.register_fake("townlet::act")
def _act_fake(obs, h, c, reset, legal, epsilon, seeds, step, encoder, widths, packed, head, actions, dueling):
    P, E = obs.shape[:2]
    return (
        obs.new_empty((P, E), dtype=torch.int64),
        obs.new_empty(P, E, actions),
        h.new_empty(h.shape),
        c.new_empty(c.shape),
    )


@torch.library.register_fake("townlet::adam_step")
def _adam_step_fake(weights, *_):
    return weights.new_empty(weights.shape[0])


@torch.library.register_fake("townlet::replay_write")
def _replay_write_fake(*args):
    return None


@torch.library.register_fake("townlet::replay_windows")
def _replay_windows_fake(obs, action, reward, terminated, reset, mask, legal, h, c, slot, start, ring, stride, seq_len):
    P, B = slot.shape
    S = seq_len
    lead = (P, B, S)
    longer = (P, B, S + 1)
    return (
        obs.new_empty(*longer, obs.shape[1]),
        h.new_empty(P, B, h.shape[1]),
        c.new_empty(P, B, c.shape[1]),
        slot.new_empty(lead),
        reward.new_empty(lead),
        terminated.new_empty(lead),
        reset.new_empty(longer),
        mask.new_empty(lead),
        mask.new_empty(0) if legal is None else legal.new_empty(*longer, legal.shape[1]),
    )


# ---- autograd ----


def _td_setup(ctx, inputs, output) -> None:
    ctx.param_grads, ctx.feature_grads = inputs[-2:]
    ctx.present = [i for i, w in enumerate(inputs[:_WEIGHTS]) if w is not None and ctx.param_grads]
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
        out[_FEATURES] = d_x if ctx.feature_grads else None
        for i, d in zip(ctx.present, d_weights, strict=True):
            out[i] = d
        return tuple(out)
    scale = d_loss.view(-1, 1, 1)
    out[_FEATURES] = d_x * scale.unsqueeze(-1) if ctx.feature_grads else None
    for i, d in zip(ctx.present, d_weights, strict=True):
        out[i] = d * (scale if d.dim() == 3 else scale.squeeze(-1))
    return tuple(out)


torch.library.register_autograd("townlet::td_unroll", _td_backward, setup_context=_td_setup)


class _TDUnroll(torch.autograd.Function):
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
