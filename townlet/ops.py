"""The operators, as people call them: checks and choice of backend around `torch.ops.townlet`.

Schemas and CPU implementations are in `csrc/ops/`, backward formulas in `townlet.autograd`; the readable twin of
each operator is in `townlet.reference`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import _native as _native  # loads the libraries that register torch.ops.townlet
from . import fake_kernels as fake_kernels  # registers them
from . import reference
from .autograd import TDUnroll
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
    exported = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
    if backend == "reference" or exported:  # what is exported is to run where Townlet is not
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
    run = TDUnroll.apply if eager else torch.ops.townlet.td_unroll
    home = None
    if grads is not None:
        check_grads(grads, online)
    if eager and param_grads and grads is not None and online.w_ih.device.type == "cpu":
        home = tuple(g for g in grads if g is not None)
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
    out = torch.ops.townlet.act(
        obs, h, c, reset, legal, epsilon, seeds, step,
        actor.encoder, s.widths, actor.panels, s.head, s.A, s.dueling,
    )  # fmt: skip
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
