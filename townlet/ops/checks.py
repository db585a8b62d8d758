"""The checks on the operators' arguments, which the compiled operators and their twins share.

There is one function for each operator, ``check_`` and the operator's name. What does not fit raises a ValueError that
names the argument, what came and what was expected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .types import ActorParams, ActorSizes, RecurrentQParams, SequenceBatch, Sizes, SpatialWeights, TDSpec


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


def _shape(t: object) -> str:
    """What came in place of a tensor of some shape, as an error says it."""
    return f"has shape {list(t.shape)}" if isinstance(t, Tensor) else f"is {type(t).__name__}"


def _check_pair(what: str, a: Tensor | None, like: str, b: Tensor | None) -> None:
    """ValueError unless a and b are both tensors or both None; the names are those of the one and the other."""
    if (a is None) != (b is None):
        came, expected = ("None", "a tensor") if a is None else ("a tensor", "None")
        raise ValueError(f"{what} is {came}; expected {expected}, as {like} is")


def check_lstm(prefix: str, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> tuple[int, int, int]:
    """P, D and H of stacked LSTM weights ``[P, 4H, D]``, ``[P, 4H, H]`` and ``[P, 4H]``.

    Raises:
        ValueError: a weight does not fit; the message names it behind ``prefix``.
    """
    if not isinstance(w_ih, Tensor) or w_ih.dim() != 3 or w_ih.shape[1] % 4 or 0 in w_ih.shape:
        raise ValueError(f"{prefix}w_ih {_shape(w_ih)}; expected [P, 4H, D], all positive")
    if w_ih.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{prefix}w_ih has dtype {w_ih.dtype}; expected torch.float32 or torch.float64")
    P, H4, D = w_ih.shape
    _check(f"{prefix}w_hh", w_hh, (P, H4, H4 // 4), (w_ih.dtype,), w_ih)
    _check(f"{prefix}bias", bias, (P, H4), (w_ih.dtype,), w_ih)
    return P, D, H4 // 4


def check_params(prefix: str, p: RecurrentQParams) -> tuple[int, int, int, int, int]:
    """P, D, H, F and A of a network's weights.

    Raises:
        ValueError: a weight does not fit; the message names it behind ``prefix``.
    """
    P, D, H = check_lstm(prefix, p.w_ih, p.w_hh, p.bias)
    fl = (p.w_ih.dtype,)
    _check_pair(f"{prefix}b_fc", p.b_fc, f"{prefix}w_fc", p.w_fc)
    _check_pair(f"{prefix}b_val", p.b_val, f"{prefix}w_val", p.w_val)
    F = H
    if p.w_fc is not None:
        F = p.w_fc.shape[1] if p.w_fc.dim() == 3 else 0
        if F == 0:
            raise ValueError(f"{prefix}w_fc has shape {list(p.w_fc.shape)}; expected [P, F, H] = [{P}, F, {H}]")
        _check(f"{prefix}w_fc", p.w_fc, (P, F, H), fl, p.w_ih)
        _check(f"{prefix}b_fc", p.b_fc, (P, F), fl, p.w_ih)
    A = p.w_adv.shape[1] if isinstance(p.w_adv, Tensor) and p.w_adv.dim() == 3 else 0
    if A == 0:
        raise ValueError(f"{prefix}w_adv {_shape(p.w_adv)}; expected [P, A, F] = [{P}, A, {F}]")
    _check(f"{prefix}w_adv", p.w_adv, (P, A, F), fl, p.w_ih)
    _check(f"{prefix}b_adv", p.b_adv, (P, A), fl, p.w_ih)
    if p.w_val is not None:
        _check(f"{prefix}w_val", p.w_val, (P, 1, F), fl, p.w_ih)
        _check(f"{prefix}b_val", p.b_val, (P, 1), fl, p.w_ih)
    return P, D, H, F, A


def check_td_unroll(
    online: RecurrentQParams, target: RecurrentQParams | None, batch: SequenceBatch, spec: TDSpec
) -> Sizes:
    """The sizes of a call of ``td_unroll``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    P, D, H, F, A = check_params("online.", online)
    if target is not None and (got := check_params("target.", target)) != (P, D, H, F, A):
        raise ValueError(f"target has (P, D, H, F, A) = {got}; expected those of online, {(P, D, H, F, A)}")
    if target is not None:
        for name in ("w_fc", "w_val"):
            _check_pair(f"target.{name}", getattr(target, name), f"online.{name}", getattr(online, name))
        if target.w_ih.dtype != online.w_ih.dtype or target.w_ih.device != online.w_ih.device:
            raise ValueError(
                f"target is {target.w_ih.dtype} on {target.w_ih.device}; "
                f"expected online's {online.w_ih.dtype} on {online.w_ih.device}"
            )
    x = batch.features_online
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(f"batch.features_online {_shape(x)}; expected [P, B, S+1, D] = [{P}, B, S+1, {D}]")
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


def check_grads(grads: RecurrentQParams, online: RecurrentQParams) -> None:
    """The buffers in which ``td_unroll`` leaves the gradients of ``online``.

    Raises:
        ValueError: a buffer does not fit; the message names it.
    """
    for name, g, w in zip(RecurrentQParams._fields, grads, online, strict=True):
        _check_pair(f"grads.{name}", g, f"online.{name}", w)
        if w is None or g is None:
            continue
        _check(f"grads.{name}", g, tuple(w.shape), (w.dtype,), w)
        if not g[0].is_contiguous() or (g.shape[0] > 1 and g.stride(0) < g[0].numel()) or g.requires_grad:
            raise ValueError(
                f"grads.{name} has strides {list(g.stride())} and requires_grad={g.requires_grad}; "
                "expected contiguous rows of a member, one member after the other, and no gradient"
            )


def check_td_unroll_scratch(sizes: dict[str, int], burn_in: int) -> None:
    """The sizes, by their symbols, and the burn-in of ``td_unroll_scratch``.

    Raises:
        ValueError: a size is below 1, or the burn-in does not fit S; the message names it.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if not 0 <= burn_in < sizes["S"]:
        raise ValueError(f"burn_in is {burn_in}; expected 0 <= burn_in < S = {sizes['S']}")


def check_lstm_unroll(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None
) -> None:
    """The arguments of ``lstm_unroll``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    P, D, H = check_lstm("", w_ih, w_hh, bias)
    if not isinstance(x, Tensor) or x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"x {_shape(x)}; expected [P, B, T, D] = [{P}, B, T, {D}], all positive")
    B, T = x.shape[1], x.shape[2]
    _check("x", x, (P, B, T, D), (w_ih.dtype,), w_ih)
    _check("h0", h0, (P, B, H), (w_ih.dtype,), w_ih)
    _check("c0", c0, (P, B, H), (w_ih.dtype,), w_ih)
    if reset is not None:
        _check("reset", reset, (P, B, T), (torch.bool,), w_ih)


def check_lstm_step(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, reset: Tensor | None
) -> None:
    """The arguments of ``lstm_step``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    P, D, H = check_lstm("", w_ih, w_hh, bias)
    if not isinstance(x, Tensor) or x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x {_shape(x)}; expected [P, E, D] = [{P}, E, {D}], all positive")
    E = x.shape[1]
    _check("x", x, (P, E, D), (w_ih.dtype,), w_ih)
    _check("h", h, (P, E, H), (w_ih.dtype,), w_ih)
    _check("c", c, (P, E, H), (w_ih.dtype,), w_ih)
    if reset is not None:
        _check("reset", reset, (P, E), (torch.bool,), w_ih)


def check_actor(p: ActorParams) -> ActorSizes:
    """The sizes of the network that ``pack_actor`` and the twin of ``act`` take.

    Raises:
        ValueError: a parameter does not fit; the message names it.
    """
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
        last = f"layers[{len(p.layers) - 1}]"
        raise ValueError(f"{last}.weight has {widths[-1]} outputs; expected D = {D}, the inputs that w_ih takes")
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
    """The arguments of ``act`` for a network of sizes ``s`` and dtype ``dtype``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
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
    _check_pair("epsilon", epsilon, "seeds", seeds)


def check_epsilon(epsilon: Tensor) -> None:
    """The values of ``epsilon``; to read them waits for the device that they lie on.

    Raises:
        ValueError: a value lies outside [0, 1]; the message tells it.
    """
    bad = (~((epsilon >= 0) & (epsilon <= 1))).nonzero().tolist()
    if bad:
        raise ValueError(f"epsilon is {epsilon[tuple(bad[0])].item()} at {bad[0]}; expected values in [0, 1]")


def check_adam_step(
    weights: Tensor, m: Tensor, v: Tensor, grad: Tensor, lr: Tensor, clip_norm: Tensor | None, step: int | Tensor
) -> None:
    """The arguments of ``adam_step``.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    if not isinstance(weights, Tensor) or weights.dim() != 2 or 0 in weights.shape:
        raise ValueError(f"weights {_shape(weights)}; expected [P, N], both positive")
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


def check_spatial_encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> None:
    """The arguments of ``spatial_encode``. Every layer may have any number of units.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    if not isinstance(obs, Tensor) or obs.dim() != 3 or 0 in obs.shape:
        raise ValueError(f"obs {_shape(obs)}; expected [P, N, numbers], all positive")
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
            expected = ", ".join(["P", "out", "in", *map(str, tail)])
            raise ValueError(f"{name} has shape {list(w.shape)}; expected [{expected}]")
        _check(name, w, (P, w.shape[1], w.shape[2] if inputs is None else inputs, *tail), fl, obs)
        bias = name.replace("_w", "_b")
        _check(bias, getattr(weights, bias), (P, w.shape[1]), fl, obs)
    numbers = weights.conv0_w.shape[2] * height * width + sum(w.shape[2] for w in weights[6::2])
    if obs.shape[2] != numbers:
        raise ValueError(f"obs has shape {list(obs.shape)}; expected [P, N, {numbers}], maps and other numbers")
