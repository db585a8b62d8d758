"""Timing on a GPU: CUDA events, the peaks that products, copies and launches reach, and what bounds an update's parts.

Symbols: P members, B sequences, S transitions, T = S + 1 observations, D features, H LSTM units, A actions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .problem import Shape
from .timing import Timing


def interleave(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 20, sample: float = 5e-3, budget: float = 20.0
) -> dict[str, Timing]:
    """Seconds per call on the GPU, candidates in turns: CUDA events around calls that are queued without a wait.

    The arguments are those of `timing.interleave`. The GPU is idle at the start of a sample, so the time that the CPU
    takes to queue a call counts where it is longer than the GPU's own.
    """
    inner: dict[str, int] = {}
    cost = 0.0
    for name, call in calls.items():
        for _ in range(3):  # algorithms are chosen, kernels compiled
            call()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        took = time.perf_counter() - begun
        inner[name] = max(1, min(1000, round(sample / max(took, 1e-7))))
        cost += took * inner[name]
    rounds = min(rounds, max(3, int(budget / max(cost, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(inner[name]):
                calls[name]()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3 / inner[name])
    return {name: Timing(statistics.median(t), min(t), len(t)) for name, t in times.items()}


def peaks(device: torch.device) -> dict[str, float]:
    """What this GPU reaches now: `fp32` and `bf16` FLOP/s of torch.mm, `bytes` a second copied, seconds a `launch`."""
    n = 4096
    square = torch.rand(n, n, device=device)
    half, wide = square.bfloat16(), torch.zeros(2**26, device=device)
    into, one = torch.empty_like(wide), torch.zeros(1, device=device)
    calls = {
        "fp32": lambda: torch.mm(square, square),
        "bf16": lambda: torch.mm(half, half),
        "bytes": lambda: into.copy_(wide),
        "launch": lambda: one.add_(1.0),
    }
    best = {name: timing.minimum for name, timing in interleave(calls, rounds=5).items()}
    work = {"fp32": 2.0 * n**3, "bf16": 2.0 * n**3, "bytes": 2.0 * wide.numel() * 4}
    return {name: amount / best[name] for name, amount in work.items()} | {"launch": best["launch"]}


# ---- what an update has to do ---------------------------------------------------------------------------------------


class Work(NamedTuple):
    """The least that a part of an update has to do: operations, and bytes that meet the GPU's memory once."""

    flops: float
    bytes: float

    def bound(self, peak: float, bandwidth: float) -> float:
        """Seconds that neither arithmetic nor memory lets it stay below."""
        return max(self.flops / peak, self.bytes / bandwidth)


FORWARD, BACKWARD, TD, PRODUCTS = "recurrence, forward", "recurrence, backward", "TD target and loss", "products"
OTHER = "everything else"


def work(shape: Shape, weight_bytes: int) -> dict[str, Work]:
    """Part -> `Work` of an update: both networks forward, the online one back, no gradient of features.

    weight_bytes: of a recurrent weight, 4 or 2. `products` are those over all of time: projections of the inputs, head,
    weight gradients.
    """
    B, S, D, H, P, A = shape
    T, gates = S + 1, 4 * H
    forward = 2 * (2 * gates * H * B * T)  # both networks
    state = B * T * 4  # bytes of one number for each observation
    products = 2 * (2 * gates * D * B * T) + 2 * (2 * A * H * B * T) + 2 * gates * (D + H) * B * S + 4 * A * H * B * S
    return {
        # projections read; of the online network outputs, gates and cells are kept, of the target its outputs
        FORWARD: Work(P * forward, P * (2 * state * gates + state * (gates + 2 * H) + state * H)
                      + 2 * P * gates * H * weight_bytes),
        # gates read and turned into their gradients, cells and the outputs' gradients read
        BACKWARD: Work(P * 2 * gates * H * B * S, P * 4 * B * S * (2 * gates + 2 * H) + P * gates * H * weight_bytes),
        TD: Work(0.0, P * 3 * state * A),  # both networks' values read, their gradient written
        PRODUCTS: Work(P * products, P * (2 * state * (D + gates) + 2 * state * H + state * (gates + D + H)
                                          + 4 * gates * (D + H) * 4)),
    }  # fmt: skip


def part_of(kernel: str) -> str:
    """Which part of an update a kernel of that name belongs to."""
    if "townlet" in kernel:
        own = {"forward": FORWARD, "backward": BACKWARD, "td_kernel": TD}
        return next((part for word, part in own.items() if word in kernel), OTHER)
    name = kernel.lower()
    return PRODUCTS if any(word in name for word in ("gemm", "cutlass", "xmma", "cublas", "nvjet")) else OTHER


class Spent(NamedTuple):
    """Seconds on the GPU and kernels launched, per call."""

    seconds: float
    launches: float


def profile(call: Callable[[], Any], calls: int = 10) -> dict[str, Spent]:
    """Part -> what its kernels took in a call, as the GPU itself counts (CUPTI, through torch.profiler)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with watch(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    spent: dict[str, Spent] = {}
    for event in seen.key_averages():
        part = part_of(event.key)
        before = spent.get(part, Spent(0.0, 0.0))
        seconds = event.self_device_time_total * 1e-6 / calls
        if seconds > 0:
            spent[part] = Spent(before.seconds + seconds, before.launches + event.count / calls)
    return spent
