"""``townlet doctor``: what was built, what runs, and whether the compiled operators agree with their float64 twins."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from ._build import build_config
from .params import RecurrentQParams, SequenceBatch, TDSpec

TOLERANCE = 2e-5
"""Largest error allowed, relative to the largest value of the tensor compared (seen: below 1e-6)."""

P, B, S, D, H, F, A = 2, 9, 11, 17, 33, 19, 6  # odd on purpose: every remainder loop runs


def examine(out: Callable[[str], None]) -> int:
    """Print the report through ``out``; returns 0 when everything agrees, else 1."""
    for name, value in describe().items():
        out(f"{name:<26}{value}")
    out("")
    out("operator, float32 kernel against float64 twin: largest error relative to the largest value")
    worst, sick = 0.0, []
    for name, error in checks():
        good = error <= TOLERANCE  # False for NaN
        out(f"  {name:<52}{error:.1e}  {'ok' if good else f'WRONG (allowed {TOLERANCE:.0e})'}")
        worst = max(worst, error)
        if not good:
            sick.append(name)
    out("")
    if sick:
        out(f"WRONG: {', '.join(sick)}")
        return 1
    out(f"all operators agree with their twins (worst {worst:.1e}); kernel in use: {kernel_in_use()}")
    return 0


def kernel_in_use() -> str:
    """Which implementation ``td_unroll`` takes with ``backend="auto"``, in words."""
    return f"compiled C++ on CPU, {ops.ISA} ({ops.LANES} floats per vector)"


def describe() -> dict[str, str]:
    """Name -> value: versions, build, instruction set, threads, GPU."""
    facts = {name.replace("_", " "): _shown(value) for name, value in build_config().items()}
    facts["machine"] = f"{platform.system()} {platform.machine()}, {cpu_name()}"
    facts["kernel in use"] = kernel_in_use()
    facts["torch CPU capability"] = torch.backends.cpu.get_cpu_capability()
    facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    facts["GPU"] = _gpu()
    return facts


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def cpu_name() -> str:
    """The processor, as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown CPU"
            )
    except OSError:
        return platform.processor() or "unknown CPU"


def _gpu() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
    return (
        f"none usable (torch built for CUDA {torch.version.cuda})"
        if torch.version.cuda
        else "none (CPU build of torch)"
    )


# ---- checks ---------------------------------------------------------------------------------------------------------


def checks() -> Iterator[tuple[str, float]]:
    """(what is compared, largest relative error) for every compiled operator."""
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
        yield from _td_checks(label, spec, generator, **variant)
    yield from _lstm_checks(generator)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * 2 - 1


def _leaf(value: Tensor | None, dtype: torch.dtype) -> Any:
    return None if value is None else value.to(dtype, copy=True).requires_grad_()


def _params(generator: torch.Generator, head: bool, dueling: bool) -> RecurrentQParams:
    def r(*shape: int) -> Tensor:
        return _random(generator, *shape) * 0.4

    units = F if head else H
    return RecurrentQParams(
        r(P, 4 * H, D), r(P, 4 * H, H), r(P, 4 * H),
        r(P, F, H) if head else None, r(P, F) if head else None,
        r(P, A, units), r(P, A),
        r(P, 1, units) if dueling else None, r(P, 1) if dueling else None,
    )  # fmt: skip


def _td_checks(
    label: str,
    settings: dict[str, Any],
    g: torch.Generator,
    *,
    target: bool = True,
    head: bool = True,
    dueling: bool = True,
) -> Iterator[tuple[str, float]]:
    online, frozen = _params(g, head, dueling), _params(g, head, dueling) if target else None
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
    for dtype, op, backend in (
        (torch.float32, ops.td_unroll, "kernel"),
        (torch.float64, reference.td_unroll, "reference"),
    ):
        weights = RecurrentQParams(*(_leaf(v, dtype) for v in online))
        other = None if frozen is None else RecurrentQParams(*(_leaf(v, dtype) for v in frozen))
        floats = {k: v.to(dtype) for k, v in batch._asdict().items() if v is not None and v.is_floating_point()}
        casted = batch._replace(**floats)._replace(features_online=_leaf(batch.features_online, dtype))
        out = op(weights, other, casted, TDSpec(gamma=gamma.to(dtype), backend=backend, **settings))  # type: ignore[arg-type]
        out.loss.sum().backward()
        gradients = [v.grad for v in (*weights, casted.features_online) if v is not None]
        values.append([out.loss, out.td_error, out.priority, out.q_taken, out.h_final, out.c_final, *gradients])  # type: ignore[list-item]
    yield f"{label}: values", _worst(values[0][:6], values[1][:6])
    yield f"{label}: gradients", _worst(values[0][6:], values[1][6:])


def _lstm_checks(g: torch.Generator) -> Iterator[tuple[str, float]]:
    base = _params(g, True, True)
    inputs = [_random(g, P, B, S, D), _random(g, P, B, H), _random(g, P, B, H), *base[:3]]
    reset = torch.rand(P, B, S, generator=g) < 0.2
    values: list[list[Tensor]] = []
    steps: list[list[Tensor]] = []
    for dtype, module in ((torch.float32, ops), (torch.float64, reference)):
        casted = [_leaf(v, dtype) for v in inputs]
        y, h, c = module.lstm_unroll(*casted, reset)
        (y.sum() + (h * c).sum()).backward()
        values.append([y, h, c, *(v.grad for v in casted)])
        with torch.no_grad():
            x, h0, c0, *weights = casted
            steps.append(list(module.lstm_step(x[:, :, 0], h0, c0, *weights, reset[:, :, 0])))
    yield "lstm_unroll: values", _worst(values[0][:3], values[1][:3])
    yield "lstm_unroll: gradients", _worst(values[0][3:], values[1][3:])
    yield "lstm_step: values", _worst(steps[0], steps[1])
    packed = ops.pack(base)
    with torch.no_grad():
        ours = ops.lstm_step(inputs[0][:, :, 0].contiguous(), inputs[1], inputs[2], packed, reset=reset[:, :, 0])
    yield "lstm_step, packed: values", _worst(list(ours), steps[1])


def _worst(mine: list[Tensor], twins: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(mine, twins, strict=True):
        error = float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max().clamp(min=1e-12))
        worst = error if error != error or error > worst else worst
    return worst
