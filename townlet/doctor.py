"""``townlet doctor``: what was built, what runs, and whether the compiled operators agree with their float64 twins."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import _native, ops, reference
from . import device as devices
from ._build import build_config
from .params import RecurrentQParams, SequenceBatch, TDSpec

TOLERANCE = 2e-5
"""Largest error allowed, relative to the largest value of the tensor compared (seen: below 1e-6)."""

CPU = torch.device("cpu")
Check = tuple[str, float, float]
"""What is compared, the largest relative error, and the one allowed."""

P, B, S, D, H, F, A = 2, 9, 11, 17, 33, 19, 6  # odd on purpose: every remainder loop runs


def examine(out: Callable[[str], None], device: str = "cpu") -> int:
    """Print the report through ``out``; returns 0 when everything agrees, else 1.

    device: "cuda" or "cuda:N" holds the operators on that GPU against their twins on the CPU, the whole update as it
    stands and recorded, and measures briefly. Raises ValueError, below the description, where there is no such device.
    """
    for name, value in describe().items():
        out(f"{name:<26}{value}")
    out("")
    where = devices.resolve(device)
    found = checks(where)
    if where.type == "cuda":
        from . import doctor_cuda

        doctor_cuda.need_kernels()
        found = itertools.chain(found, doctor_cuda.checks(where))
    out(f"operator on {where}, kernel against float64 twin: largest error relative to the largest value")
    worst, sick = 0.0, []
    for name, error, allowed in found:
        good = error <= allowed  # False for NaN
        out(f"  {name:<58}{error:.1e}  {'ok' if good else f'WRONG (allowed {allowed:.0e})'}")
        worst = max(worst, error)
        if not good:
            sick.append(name)
    out("")
    if sick:
        out(f"WRONG: {', '.join(sick)}")
        return 1
    kernel = cuda_kernel_in_use(where) if where.type == "cuda" else kernel_in_use()
    out(f"all operators agree with their twins (worst {worst:.1e}); kernel in use: {kernel}")
    if where.type == "cuda":
        doctor_cuda.measure(where, out)
    return 0


def kernel_in_use() -> str:
    """Which implementation ``td_unroll`` takes on the CPU with ``backend="auto"``, in words."""
    return f"compiled C++ on CPU, {ops.ISA} ({ops.LANES} floats per vector)"


def cuda_kernel_in_use(where: torch.device | str = "cuda") -> str:
    """Which implementation ``td_unroll`` takes for CUDA tensors, in words."""
    if not _native.CUDA:
        return f"none ({_native.WHY_NOT_CUDA})"
    if not torch.cuda.is_available():
        return "none (no usable GPU)"
    form = os.environ.get("TOWNLET_CUDA_UNROLL")
    asked = f"TOWNLET_CUDA_UNROLL asks for {form}: " if form else ""
    plans = (f"H = {H} {name}: {plan_in_words(where, H, name)}" for H in (128, 256, 512) for name in ("fp32", "bf16"))
    return f"{asked}B = 64, S = 80, forward, " + "; ".join(plans)


def plan_in_words(where: torch.device | str, H: int, dtype: str) -> str:
    """The form of the recurrent kernels on a GPU for two chains of 64 x 81; or why the form asked for does not fit."""
    index = torch.device(where).index or 0
    try:
        plan: str = torch.ops.townlet.unroll_plan(index, 1, 64, 81, H, dtype == "bf16", 2, False)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return plan


def describe() -> dict[str, str]:
    """Name -> value: versions, build, instruction set, threads, GPU."""
    facts = {name.replace("_", " "): _shown(value) for name, value in build_config().items()}
    facts["machine"] = f"{platform.system()} {platform.machine()}, {cpu_name()}"
    facts["kernel in use"] = kernel_in_use()
    facts["CUDA kernel in use"] = cuda_kernel_in_use()
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


def checks(device: torch.device = CPU) -> Iterator[Check]:
    """Every compiled operator on `device` against its twin on the CPU."""
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
    """Values and gradients of `td_unroll` on `device`; settings: of the TDSpec."""
    H, A = hidden, actions
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
    for dtype, op, backend, where in (
        (torch.float32, ops.td_unroll, "kernel", device),
        (torch.float64, reference.td_unroll, "reference", CPU),
    ):
        weights = RecurrentQParams(*(_leaf(v, dtype, where) for v in online))
        other = None if frozen is None else RecurrentQParams(*(_leaf(v, dtype, where) for v in frozen))
        moved = {k: v.to(where) for k, v in batch._asdict().items() if v is not None}
        moved |= {k: v.to(dtype) for k, v in moved.items() if v.is_floating_point()}
        casted = batch._replace(**moved)._replace(features_online=_leaf(batch.features_online, dtype, where))
        spec = TDSpec(gamma=gamma.to(where, dtype), backend=backend, **settings)  # type: ignore[arg-type]
        out = op(weights, other, casted, spec)
        out.loss.sum().backward()
        gradients = [v.grad for v in (*weights, casted.features_online) if v is not None]
        values.append([out.loss, out.td_error, out.priority, out.q_taken, out.h_final, out.c_final, *gradients])  # type: ignore[list-item]
    yield f"{label}: values", _worst(values[0][:6], values[1][:6]), allowed
    yield f"{label}: gradients", _worst(values[0][6:], values[1][6:]), allowed


def _lstm_checks(g: torch.Generator, device: torch.device) -> Iterator[Check]:
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
