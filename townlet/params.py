"""The operator's arguments: shapes, meanings and the checks on them.

Symbols, in this order everywhere: P members, B sequences per member, S transitions per sequence (S + 1 observations),
D LSTM input features, H LSTM hidden size, F head hidden size, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class RecurrentQParams(NamedTuple):
    """Weights of P recurrent Q-networks: an LSTM and a (dueling) head.

    The LSTM's weights map one to one to `torch.nn.LSTM` (gates in the order i, f, g, o; `bias = bias_ih + bias_hh`).
    `w_fc`/`b_fc` (the head's ReLU layer) and `w_val`/`b_val` (the dueling value stream, Wang et al. 2016) come in pairs
    and may be None. Without `w_fc` the streams read the LSTM's output, so F is H.
    """

    w_ih: Tensor  #                [P, 4H, D]
    w_hh: Tensor  #                [P, 4H, H]
    bias: Tensor  #                [P, 4H]
    w_fc: Tensor | None  #         [P, F, H]
    b_fc: Tensor | None  #         [P, F]
    w_adv: Tensor  #               [P, A, F]
    b_adv: Tensor  #               [P, A]
    w_val: Tensor | None = None  # [P, 1, F]
    b_val: Tensor | None = None  # [P, 1]


class SpatialWeights(NamedTuple):
    """Weights of P encoders over maps and other numbers, as in `torch.nn.Conv2d` and `torch.nn.Linear`."""

    conv0_w: Tensor  #      [P, 16, planes, 3, 3]
    conv0_b: Tensor  #      [P, 16]
    conv1_w: Tensor  #      [P, 32, 16, 3, 3]
    conv1_b: Tensor  #      [P, 32]
    window_w: Tensor  #     [P, 128, 32 * height * width]
    window_b: Tensor  #     [P, 128]
    position_w: Tensor  #   [P, 32, 2]
    position_b: Tensor  #   [P, 32]
    meters_w: Tensor  #     [P, 32, 8]
    meters_b: Tensor  #     [P, 32]
    affordance_w: Tensor  # [P, 32, 18]
    affordance_b: Tensor  # [P, 32]


class ActorParams(NamedTuple):
    """A whole network as acting needs it: dense layers, each with a ReLU behind it, then LSTM and head.

    `layers` holds (weight [P, out, in], bias [P, out]) pairs; none: the LSTM reads the observation itself.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    recurrent: RecurrentQParams


class ActorSizes(NamedTuple):
    """Sizes read off checked actor parameters; `widths` holds the observation's, then each layer's, D last."""

    P: int
    widths: tuple[int, ...]
    H: int
    head: int  # F where the head has a hidden layer, else 0
    A: int
    dueling: bool


class ActOutput(NamedTuple):
    """What one acting step returns."""

    action: Tensor  # [P, E] int64
    q: Tensor  #      [P, E, A]
    h: Tensor  #      [P, E, H] the state after the step
    c: Tensor  #      [P, E, H]


ACTING_STREAM = 1
"""Which of a member's Philox streams epsilon-greedy draws from."""


class SequenceBatch(NamedTuple):
    """B replayed sequences for each of P members.

    A transition t is *valid* where `mask[t]` is set, unless observation t+1 starts another episode (`reset[t+1]`) while
    transition t did not terminate. At positions that are not valid, action, reward and terminated may hold anything,
    NaN included.
    """

    features_online: Tensor  #        [P, B, S+1, D] encoder output under the online encoder
    features_target: Tensor | None  # [P, B, S+1, D] the same observations under the target encoder; None without target
    h0: Tensor  #                     [P, B, H] stored state before observation 0 (both networks start from it)
    c0: Tensor  #                     [P, B, H]
    action: Tensor  #                 [P, B, S] int64
    reward: Tensor  #                 [P, B, S] float
    terminated: Tensor  #             [P, B, S] bool, true end of the episode (truncation is not termination)
    reset: Tensor  #                  [P, B, S+1] bool, observation t is the first of an episode: state zeroed before it
    mask: Tensor  #                   [P, B, S] bool, transition t is real
    weight: Tensor  #                 [P, B] importance-sampling weights
    legal: Tensor | None = None  #    [P, B, S+1, A] bool; a row with no legal action counts as all legal


class TDOutput(NamedTuple):
    """What one call of the operator returns. Only `loss` is differentiable."""

    loss: Tensor  #     [P] weighted mean over the member's valid transitions from step `burn_in` on
    td_error: Tensor  # [P, B, S] y - Q(s_t, a_t); 0 in burn-in and where not valid
    priority: Tensor  # [P, B] eta * max |td_error| + (1 - eta) * mean |td_error|
    q_taken: Tensor  #  [P, B, S] Q(s_t, a_t); 0 where not valid
    h_final: Tensor  #  [P, B, H] online state after observation S
    c_final: Tensor  #  [P, B, H]


@dataclass(frozen=True)
class TDSpec:
    """How the TD target and the loss are formed.

    Errors: ValueError naming the field for a value outside its range (`burn_in` against S is checked at the call).
    """

    gamma: float | Tensor = 0.99
    """Discount per transition, in [0, 1]; a float for all members or a tensor [P]."""
    n_step: int = 1
    """Transitions in the return before it bootstraps (at least 1; may exceed S)."""
    burn_in: int = 0
    """L: leading transitions that only warm the state up (R2D2, Kapturowski et al. 2019); 0 <= L < S."""
    double_q: bool = True
    """The online network chooses the successor's action, the target network values it (van Hasselt et al. 2016)."""
    rescale_eps: float = 0.0
    """Epsilon of the invertible value rescaling h (Pohlen et al. 2018; R2D2 uses 1e-3); 0 switches it off."""
    loss: Literal["huber", "mse"] = "huber"
    huber_delta: float = 1.0
    eta: float = 0.9
    """Weight of the maximum against the mean of |td_error| in the sequence priority (R2D2)."""
    compute_dtype: torch.dtype = torch.float32
    """float32, or bfloat16 operands of matrix products (accumulation, gates and master weights stay float32)."""
    backend: Literal["auto", "kernel", "reference"] = "auto"
    """auto: the compiled kernel where one fits, else the reference, announced once."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"TDSpec.{name} is {getattr(self, name)!r}; expected {expected}")

        if isinstance(self.gamma, Tensor):
            need(self.gamma.dim() == 1, "gamma", "a float or a tensor [P]")
            # the range of a tensor is not checked on an accelerator: that would wait for the device
            if self.gamma.device.type == "cpu" and not torch.compiler.is_compiling():
                need(bool(((self.gamma >= 0) & (self.gamma <= 1)).all()), "gamma", "values in [0, 1]")
        else:
            need(0.0 <= self.gamma <= 1.0, "gamma", "a value in [0, 1]")
        need(isinstance(self.n_step, int) and self.n_step >= 1, "n_step", "an int >= 1")
        need(isinstance(self.burn_in, int) and self.burn_in >= 0, "burn_in", "an int >= 0")
        need(0.0 <= self.rescale_eps < float("inf"), "rescale_eps", "a finite value >= 0")
        need(self.loss in ("huber", "mse"), "loss", "'huber' or 'mse'")
        need(0.0 < self.huber_delta < float("inf"), "huber_delta", "a finite value > 0")
        need(0.0 <= self.eta <= 1.0, "eta", "a value in [0, 1]")
        need(self.compute_dtype in (torch.float32, torch.bfloat16), "compute_dtype", "torch.float32 or torch.bfloat16")
        need(self.backend in ("auto", "kernel", "reference"), "backend", "'auto', 'kernel' or 'reference'")


class Sizes(NamedTuple):
    """The glossary's sizes, as read off checked arguments."""

    P: int
    B: int
    S: int
    D: int
    H: int
    F: int
    A: int


def _check(name: str, t: Tensor | None, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], like: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise ValueError(f"{name} is {type(t).__name__}; expected a tensor of shape {list(shape)}")
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} has shape {list(t.shape)}; expected {list(shape)}")
    if t.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{name} has dtype {str(t.dtype).removeprefix('torch.')}; expected {names}")
    if t.device != like.device:
        raise ValueError(f"{name} is on {t.device}; expected {like.device}, the weights' device")


def check_lstm(prefix: str, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> tuple[int, int, int]:
    """P, D and H of a stack of LSTM weights; ValueError names what does not fit."""
    if not isinstance(w_ih, Tensor) or w_ih.dim() != 3 or w_ih.shape[1] % 4 or 0 in w_ih.shape:
        got = list(w_ih.shape) if isinstance(w_ih, Tensor) else type(w_ih).__name__
        raise ValueError(f"{prefix}w_ih has shape {got}; expected [P, 4H, D], all positive")
    if w_ih.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{prefix}w_ih has dtype {w_ih.dtype}; expected torch.float32 or torch.float64")
    P, H4, D = w_ih.shape
    _check(f"{prefix}w_hh", w_hh, (P, H4, H4 // 4), (w_ih.dtype,), w_ih)
    _check(f"{prefix}bias", bias, (P, H4), (w_ih.dtype,), w_ih)
    return P, D, H4 // 4


def check_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None
) -> None:
    """The arguments of lstm_unroll; ValueError names what does not fit."""
    P, D, H = check_lstm("", w_ih, w_hh, bias)
    if not isinstance(x, Tensor) or x.dim() != 4 or 0 in x.shape:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has shape {got}; expected [P, B, T, D] = [{P}, B, T, {D}], all positive")
    B, T = x.shape[1], x.shape[2]
    _check("x", x, (P, B, T, D), (w_ih.dtype,), w_ih)
    _check("h0", h0, (P, B, H), (w_ih.dtype,), w_ih)
    _check("c0", c0, (P, B, H), (w_ih.dtype,), w_ih)
    if reset is not None:
        _check("reset", reset, (P, B, T), (torch.bool,), w_ih)


def check_step(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None) -> None:
    """The arguments of lstm_step; ValueError names what does not fit."""
    P, D, H = check_lstm("", w_ih, w_hh, bias)
    if not isinstance(x, Tensor) or x.dim() != 3 or 0 in x.shape:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has shape {got}; expected [P, E, D] = [{P}, E, {D}], all positive")
    E = x.shape[1]
    _check("x", x, (P, E, D), (w_ih.dtype,), w_ih)
    _check("h", h, (P, E, H), (w_ih.dtype,), w_ih)
    _check("c", c, (P, E, H), (w_ih.dtype,), w_ih)
    if reset is not None:
        _check("reset", reset, (P, E), (torch.bool,), w_ih)


def check_actor(p: ActorParams) -> ActorSizes:
    """The sizes of a network; ValueError names the parameter that does not fit."""
    P, D, H, F, A = check_params("", p.recurrent)
    w_ih = p.recurrent.w_ih
    widths: list[int] = []
    for i, (weight, bias) in enumerate(p.layers):
        if weight.dim() != 3 or 0 in weight.shape:
            raise ValueError(f"layers[{i}].weight has shape {list(weight.shape)}; expected [P, out, in], all positive")
        out, width = weight.shape[1:]
        widths = widths or [width]
        _check(f"layers[{i}].weight", weight, (P, out, widths[-1]), (w_ih.dtype,), w_ih)
        _check(f"layers[{i}].bias", bias, (P, out), (w_ih.dtype,), w_ih)
        widths.append(out)
    if widths and widths[-1] != D:
        raise ValueError(f"layers put out {widths[-1]} features; expected D = {D}, as w_ih takes")
    head = 0 if p.recurrent.w_fc is None else F
    return ActorSizes(P, tuple(widths) or (D,), H, head, A, p.recurrent.w_val is not None)


def check_act(
    s: ActorSizes,
    dtype: torch.dtype,
    obs: Tensor,
    h: Tensor,
    c: Tensor,
    reset: Tensor | None,
    legal: Tensor | None,
    epsilon: Tensor | None,
    seeds: Tensor | None,
) -> None:
    """The arguments of act; ValueError names what does not fit."""
    E = h.shape[1] if h.dim() == 3 else 0
    given = (
        ("obs", obs, "[P, E, obs_size]", (s.P, E, s.widths[0]), dtype),
        ("h", h, "[P, E, H]", (s.P, E, s.H), dtype),
        ("c", c, "[P, E, H]", (s.P, E, s.H), dtype),
        ("reset", reset, "[P, E]", (s.P, E), torch.bool),
        ("legal", legal, "[P, E, A]", (s.P, E, s.A), torch.bool),
        ("epsilon", epsilon, "[P, E]", (s.P, E), torch.float64),
        ("seeds", seeds, "[P]", (s.P,), torch.int64),
    )
    for name, value, meaning, shape, expected in given:
        if value is None:
            continue
        if value.shape != shape or E == 0:
            raise ValueError(f"{name} has shape {list(value.shape)}; expected {meaning} = {list(shape)}")
        if value.dtype != expected:
            raise ValueError(f"{name} has dtype {value.dtype}; expected {expected}")
    if (epsilon is None) != (seeds is None):
        raise ValueError("epsilon and seeds come together; only one of them is None")


def check_epsilon(epsilon: Tensor) -> None:
    """ValueError naming a value outside [0, 1]."""
    bad = (~((epsilon >= 0) & (epsilon <= 1))).nonzero().tolist()
    if bad:
        raise ValueError(f"epsilon is {epsilon[tuple(bad[0])].item()} at {bad[0]}; expected values in [0, 1]")


def check_adam(
    weights: Tensor, m: Tensor, v: Tensor, grad: Tensor, lr: Tensor, clip_norm: Tensor | None, step: int | Tensor
) -> None:
    """The arguments of adam_step; ValueError names what does not fit."""
    if not isinstance(weights, Tensor) or weights.dim() != 2 or 0 in weights.shape:
        got = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights has shape {got}; expected [P, N], both positive")
    P, N = weights.shape
    for name, t in (("weights", weights), ("m", m), ("v", v)):
        _check(name, t, (P, N), (weights.dtype,), weights)
        if not t.is_contiguous():
            raise ValueError(f"{name} has strides {t.stride()}; expected a contiguous tensor, since it is written")
    _check("grad", grad, (P, N), (weights.dtype,), weights)
    _check("lr", lr, (P,), (weights.dtype,), weights)
    if clip_norm is not None:
        _check("clip_norm", clip_norm, (P,), (weights.dtype,), weights)
    if isinstance(step, int) and step < 1:
        raise ValueError(f"step is {step}; expected at least 1")


def check_spatial(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> None:
    """The arguments of spatial_encode; ValueError names what does not fit. Numbers of units are free."""
    if not isinstance(obs, Tensor) or obs.dim() != 3 or 0 in obs.shape:
        got = list(obs.shape) if isinstance(obs, Tensor) else type(obs).__name__
        raise ValueError(f"obs has shape {got}; expected [P, N, numbers], all positive")
    for name, value in (("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    P, fl = obs.shape[0], (obs.dtype,)
    for name, w, inputs in (
        ("conv0_w", weights.conv0_w, None),
        ("conv1_w", weights.conv1_w, weights.conv0_w.shape[1]),
        ("window_w", weights.window_w, weights.conv1_w.shape[1] * height * width),
        ("position_w", weights.position_w, None),
        ("meters_w", weights.meters_w, None),
        ("affordance_w", weights.affordance_w, None),
    ):
        tail = (3, 3) if name.startswith("conv") else ()
        if w.dim() != 3 + len(tail):
            raise ValueError(f"{name} has shape {list(w.shape)}; expected {['P', 'out', 'in', *tail]}")
        _check(name, w, (P, w.shape[1], w.shape[2] if inputs is None else inputs, *tail), fl, obs)
        bias = name.replace("_w", "_b")
        _check(bias, getattr(weights, bias), (P, w.shape[1]), fl, obs)
    numbers = weights.conv0_w.shape[2] * height * width + sum(w.shape[2] for w in weights[6::2])
    if obs.shape[2] != numbers:
        raise ValueError(f"obs has shape {list(obs.shape)}; expected [P, N, {numbers}], maps and other numbers")


def check_params(prefix: str, p: RecurrentQParams) -> tuple[int, int, int, int, int]:
    """(P, D, H, F, A) of the parameters; ValueError names what does not fit."""
    P, D, H = check_lstm(prefix, p.w_ih, p.w_hh, p.bias)
    fl = (p.w_ih.dtype,)
    for a, b in (("w_fc", "b_fc"), ("w_val", "b_val")):
        if (getattr(p, a) is None) != (getattr(p, b) is None):
            raise ValueError(f"{prefix}{a} and {prefix}{b} come in a pair; only one of them is None")
    F = H
    if p.w_fc is not None:
        F = p.w_fc.shape[1] if p.w_fc.dim() == 3 else 0
        if F == 0:
            raise ValueError(f"{prefix}w_fc has shape {list(p.w_fc.shape)}; expected [P, F, H] = [{P}, F, {H}]")
        _check(f"{prefix}w_fc", p.w_fc, (P, F, H), fl, p.w_ih)
        _check(f"{prefix}b_fc", p.b_fc, (P, F), fl, p.w_ih)
    A = p.w_adv.shape[1] if isinstance(p.w_adv, Tensor) and p.w_adv.dim() == 3 else 0
    if A == 0:
        got = list(p.w_adv.shape) if isinstance(p.w_adv, Tensor) else type(p.w_adv).__name__
        raise ValueError(f"{prefix}w_adv has shape {got}; expected [P, A, F] = [{P}, A, {F}]")
    _check(f"{prefix}w_adv", p.w_adv, (P, A, F), fl, p.w_ih)
    _check(f"{prefix}b_adv", p.b_adv, (P, A), fl, p.w_ih)
    if p.w_val is not None:
        _check(f"{prefix}w_val", p.w_val, (P, 1, F), fl, p.w_ih)
        _check(f"{prefix}b_val", p.b_val, (P, 1), fl, p.w_ih)
    return P, D, H, F, A


def check_grads(grads: RecurrentQParams, online: RecurrentQParams) -> None:
    """Buffers for the gradients of `online`; ValueError names the one that does not fit."""
    for name, g, w in zip(RecurrentQParams._fields, grads, online, strict=True):
        if w is None or g is None:
            if w is not g:
                raise ValueError(f"grads.{name} and online.{name} differ: one of them is None")
            continue
        _check(f"grads.{name}", g, tuple(w.shape), (w.dtype,), w)
        if not g[0].is_contiguous() or (g.shape[0] > 1 and g.stride(0) < g[0].numel()) or g.requires_grad:
            raise ValueError(
                f"grads.{name} has strides {list(g.stride())} and requires_grad={g.requires_grad}; "
                "expected contiguous rows of a member, one member after the other, and no gradient"
            )


def check_td(online: RecurrentQParams, target: RecurrentQParams | None, batch: SequenceBatch, spec: TDSpec) -> Sizes:
    """The sizes of a call of td_unroll; ValueError names the argument, what came and what was expected."""
    P, D, H, F, A = check_params("online.", online)
    if target is not None and (got := check_params("target.", target)) != (P, D, H, F, A):
        raise ValueError(f"target has (P, D, H, F, A) = {got}; expected those of online, {(P, D, H, F, A)}")
    if target is not None:
        for name in ("w_fc", "w_val"):
            if (getattr(target, name) is None) != (getattr(online, name) is None):
                raise ValueError(f"target.{name} and online.{name} differ: one of them is None")
        if target.w_ih.dtype != online.w_ih.dtype or target.w_ih.device != online.w_ih.device:
            raise ValueError(
                f"target is {target.w_ih.dtype} on {target.w_ih.device}; "
                f"expected online's {online.w_ih.dtype} on {online.w_ih.device}"
            )
    x = batch.features_online
    if not isinstance(x, Tensor) or x.dim() != 4:
        came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"batch.features_online has shape {came}; expected [P, B, S+1, D] = [{P}, B, S+1, {D}]")
    B, S = x.shape[1], x.shape[2] - 1
    if B < 1 or S < 1:
        raise ValueError(f"batch.features_online has shape {list(x.shape)}; expected B >= 1 and S >= 1")
    fl = (online.w_ih.dtype,)
    w = online.w_ih
    _check("batch.features_online", x, (P, B, S + 1, D), fl, w)
    if target is None:
        if batch.features_target is not None:
            raise ValueError("batch.features_target is a tensor; expected None, since target is None")
    else:
        _check("batch.features_target", batch.features_target, (P, B, S + 1, D), fl, w)
    _check("batch.h0", batch.h0, (P, B, H), fl, w)
    _check("batch.c0", batch.c0, (P, B, H), fl, w)
    _check("batch.action", batch.action, (P, B, S), (torch.int64,), w)
    _check("batch.reward", batch.reward, (P, B, S), fl, w)
    _check("batch.terminated", batch.terminated, (P, B, S), (torch.bool,), w)
    _check("batch.reset", batch.reset, (P, B, S + 1), (torch.bool,), w)
    _check("batch.mask", batch.mask, (P, B, S), (torch.bool,), w)
    _check("batch.weight", batch.weight, (P, B), fl, w)
    if batch.legal is not None:
        _check("batch.legal", batch.legal, (P, B, S + 1, A), (torch.bool,), w)
    if not 0 <= spec.burn_in < S:
        raise ValueError(f"spec.burn_in is {spec.burn_in}; expected 0 <= burn_in < S = {S}")
    if isinstance(spec.gamma, Tensor) and tuple(spec.gamma.shape) != (P,):
        raise ValueError(f"spec.gamma has shape {list(spec.gamma.shape)}; expected a float or [P] = [{P}]")
    return Sizes(P, B, S, D, H, F, A)
