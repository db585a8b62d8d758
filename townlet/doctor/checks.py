"""Every compiled operator against its float64 twin: values and gradients, at sizes that no vector length divides.

Symbols: P members, B sequences, S transitions, D features, H LSTM units, F units of the head's layer, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from .. import ops
from .._build import form_refused
from ..ops import reference
from ..ops.types import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

TOLERANCE = 2e-5
"""The largest error allowed, relative to the largest value of the tensor compared (seen: below 1e-6)."""

CPU = torch.device("cpu")
Check = tuple[str, float | str, float]
"""What is compared, the largest relative error or why nothing could be compared, and the error allowed."""

P, B, S, D, H, F, A = 2, 9, 11, 17, 33, 19, 6  # odd on purpose, so that every remainder loop runs


def operator_checks(device: torch.device = CPU) -> Iterator[Check]:
    """Compare every compiled operator on ``device`` with its twin on the CPU."""
    generator = torch.Generator().manual_seed(1)
    for label, spec, variant in (
        ("td_unroll", {"n_step": 3, "burn_in": 2, "rescale_eps": 1e-3}, {}),
        (
            "td_unroll, mse, no target, linear head",
            {"loss": "mse", "double_q": False},
            {"target": False, "head": False},
        ),
        ("td_unroll, one network head, n > S", {"n_step": 50, "huber_delta": 0.1}, {"dueling": False}),
    ):
        yield from td_checks(label, spec, generator, device=device, **variant)
    yield from _lstm_checks(generator, device)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * 2 - 1


def _leaf(value: Tensor | None, dtype: torch.dtype, device: torch.device) -> Any:
    return None if value is None else value.to(device, dtype, copy=True).requires_grad_()


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _params(generator: torch.Generator, head: bool, dueling: bool, H: int = H, A: int = A) -> RecurrentQParams:
    def r(*shape: int) -> Tensor:
        return _random(generator, *shape) * (2.3 * H**-0.5)

    units = F if head else H
    return RecurrentQParams(
        r(P, 4 * H, D), r(P, 4 * H, H), r(P, 4 * H),
        r(P, F, H) if head else None, r(P, F) if head else None,
        r(P, A, units), r(P, A),
        r(P, 1, units) if dueling else None, r(P, 1) if dueling else None,
    )  # fmt: skip


def td_checks(
    label: str,
    settings: dict[str, Any],
    g: torch.Generator,
    *,
    target: bool = True,
    head: bool = True,
    dueling: bool = True,
    hidden: int = H,
    actions: int = A,
    device: torch.device = CPU,
    allowed: float = TOLERANCE,
) -> Iterator[Check]:
    """Compare values and gradients of `td_unroll` with its twin's.

    Args:
        label: what the report calls the check.
        settings: the arguments of `TDSpec`.
        g: draws the numbers.
        target: whether there is a target network.
        head: whether the head has a hidden layer.
        dueling: whether there is a value stream.
        hidden: H.
        actions: A.
        device: where the compiled operator runs. The twin runs on the CPU.
        allowed: the largest error allowed, relative to the largest value.
    """
    H, A = hidden, actions
    bf16 = settings.get("compute_dtype") == torch.bfloat16
    refused = form_refused(device, P, B, S + 1, H, bf16=bf16, chains=2 if target else 1)
    if refused:
        yield label, refused, allowed
        return
    online = _params(g, head, dueling, H, A)
    frozen = _params(g, head, dueling, H, A) if target else None
    reset = torch.rand(P, B, S + 1, generator=g) < 0.1
    batch = SequenceBatch(
        _random(g, P, B, S + 1, D), _random(g, P, B, S + 1, D) if target else None,
        _random(g, P, B, H), _random(g, P, B, H),
        torch.randint(0, A, (P, B, S), generator=g), _random(g, P, B, S),
        torch.rand(P, B, S, generator=g) < 0.1, reset, torch.rand(P, B, S, generator=g) < 0.9,
        torch.rand(P, B, generator=g) + 0.5, torch.rand(P, B, S + 1, A, generator=g) < 0.7,
    )  # fmt: skip
    gamma = torch.tensor([0.9, 0.99])
    values: list[list[Tensor]] = []
    forms: tuple[tuple[torch.dtype, Callable[..., TDOutput], Literal["kernel", "reference"], torch.device], ...] = (
        (torch.float32, ops.td_unroll, "kernel", device),
        (torch.float64, reference.td_unroll, "reference", CPU),
    )
    for dtype, op, backend, where in forms:
        weights = RecurrentQParams(*(_leaf(v, dtype, where) for v in online))
        other = None if frozen is None else RecurrentQParams(*(_leaf(v, dtype, where) for v in frozen))
        moved = {k: v.to(where) for k, v in batch._asdict().items() if v is not None}
        moved |= {k: v.to(dtype) for k, v in moved.items() if v.is_floating_point()}
        casted = batch._replace(**moved)._replace(features_online=_leaf(batch.features_online, dtype, where))
        spec = TDSpec(gamma=gamma.to(where, dtype), backend=backend, **settings)
        out = op(weights, other, casted, spec)
        out.loss.sum().backward()
        gradients = [_gradient(v) for v in (*weights, casted.features_online) if v is not None]
        values.append([out.loss, out.td_error, out.priority, out.q_taken, out.h_final, out.c_final, *gradients])
    yield f"{label}: values", _worst(values[0][:6], values[1][:6]), allowed
    yield f"{label}: gradients", _worst(values[0][6:], values[1][6:]), allowed


def _lstm_checks(g: torch.Generator, device: torch.device) -> Iterator[Check]:
    refused = form_refused(device, P, B, S, H) or form_refused(device, P, B, 1, H, gradients=False)
    if refused:
        yield "lstm_unroll and lstm_step", refused, TOLERANCE
        return
    base = _params(g, True, True)
    inputs = [_random(g, P, B, S, D), _random(g, P, B, H), _random(g, P, B, H), *base[:3]]
    reset = torch.rand(P, B, S, generator=g) < 0.2
    values: list[list[Tensor]] = []
    steps: list[list[Tensor]] = []
    for dtype, module, where in ((torch.float32, ops, device), (torch.float64, reference, CPU)):
        casted = [_leaf(v, dtype, where) for v in inputs]
        first = reset.to(where)
        y, h, c = module.lstm_unroll(*casted, first)
        (y.sum() + (h * c).sum()).backward()
        values.append([y, h, c, *(v.grad for v in casted)])
        with torch.no_grad():
            x, h0, c0, *weights = casted
            steps.append(list(module.lstm_step(x[:, :, 0], h0, c0, *weights, first[:, :, 0])))
    yield "lstm_unroll: values", _worst(values[0][:3], values[1][:3]), TOLERANCE
    yield "lstm_unroll: gradients", _worst(values[0][3:], values[1][3:]), TOLERANCE
    yield "lstm_step: values", _worst(steps[0], steps[1]), TOLERANCE
    packed = ops.pack(RecurrentQParams._make(None if v is None else v.to(device) for v in base))
    x, h, c, first = (v.to(device) for v in (inputs[0][:, :, 0], inputs[1], inputs[2], reset[:, :, 0]))
    with torch.no_grad():
        ours = ops.lstm_step(x.contiguous(), h, c, packed, reset=first)
    yield "lstm_step, packed: values", _worst(list(ours), steps[1]), TOLERANCE


def _worst(mine: list[Tensor], twins: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(mine, twins, strict=True):
        error = float((a.detach().cpu().double() - b.detach()).abs().max() / b.detach().abs().max().clamp(min=1e-12))
        worst = error if error != error or error > worst else worst
    return worst
