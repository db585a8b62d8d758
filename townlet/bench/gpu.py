"""Timing on a GPU with CUDA events, the peaks of products, copies and launches, and what bounds an update's parts.

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
    """Time candidates on the GPU in turns, with CUDA events around calls that are queued without a wait.

    The GPU is idle at the start of a sample. So the time that the CPU takes to queue a call counts where it is longer
    than the GPU's own.

    Args:
        calls: name -> what to time.
        rounds: samples of each candidate.
        sample: seconds that a sample should last at least.
        budget: seconds for all of it, about. Rounds are left out to keep to it, but three are always measured.

    Returns:
        Name -> seconds per call.
    """
    inner: dict[str, int] = {}
    cost = 0.0
    for name, call in calls.items():
        for _ in range(3):  # the first calls choose algorithms and compile kernels
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
    """What this GPU reaches now.

    Returns:
        The FLOP/s of torch.mm as "fp32" and "bf16", the bytes copied per second as "bytes", and the seconds that a
        kernel launch takes as "launch".
    """
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
    """The least that a part of an update has to do.

    Attributes:
        flops: floating-point operations.
        bytes: bytes to and from the GPU's memory, each counted once.
    """

    flops: float
    bytes: float

    def bound(self, peak: float, bandwidth: float) -> float:
        """The least seconds that arithmetic (``peak`` FLOP/s) and memory (``bandwidth`` bytes/s) allow."""
        return max(self.flops / peak, self.bytes / bandwidth)


FORWARD, BACKWARD, TD, PRODUCTS = "recurrence, forward", "recurrence, backward", "TD target and loss", "products"
OTHER = "everything else"


def work(shape: Shape, weight_bytes: int) -> dict[str, Work]:
    """The work of an update, by part.

    Both networks run forward and the online one back, without a gradient of the features. PRODUCTS are those over the
    whole sequence at once: projections of the inputs, head, weight gradients.

    Args:
        shape: the sizes of the update.
        weight_bytes: the bytes of a recurrent weight, 4 or 2.
    """
    B, S, D, H, P, A = shape
    T, gates = S + 1, 4 * H
    forward = 2 * (2 * gates * H * B * T)  # both networks
    state = B * T * 4  # bytes of one number for each observation
    products = 2 * (2 * gates * D * B * T) + 2 * (2 * A * H * B * T) + 2 * gates * (D + H) * B * S + 4 * A * H * B * S
    return {
        # The projections are read. The online network keeps its outputs, gates and cells, the target its outputs.
        FORWARD: Work(P * forward, P * (2 * state * gates + state * (gates + 2 * H) + state * H)
                      + 2 * P * gates * H * weight_bytes),
        # The gates are read and turned into their gradients. The cells and the outputs' gradients are read.
        BACKWARD: Work(P * 2 * gates * H * B * S, P * 4 * B * S * (2 * gates + 2 * H) + P * gates * H * weight_bytes),
        TD: Work(0.0, P * 3 * state * A),  # both networks' values are read, and their gradient is written
        PRODUCTS: Work(P * products, P * (2 * state * (D + gates) + 2 * state * H + state * (gates + D + H)
                                          + 4 * gates * (D + H) * 4)),
    }  # fmt: skip


def part_of(kernel: str) -> str:
    """The part of an update that a kernel of this name belongs to."""
    if "townlet" in kernel:
        own = {"forward": FORWARD, "backward": BACKWARD, "td_kernel": TD}
        return next((part for word, part in own.items() if word in kernel), OTHER)
    name = kernel.lower()
    return PRODUCTS if any(word in name for word in ("gemm", "cutlass", "xmma", "cublas", "nvjet")) else OTHER


class Spent(NamedTuple):
    """What a part of an update took per call: seconds on the GPU, and kernels launched."""

    seconds: float
    launches: float


def profile(call: Callable[[], Any], calls: int = 10) -> dict[str, Spent]:
    """What the kernels of each part took per call, as the GPU itself counts (CUPTI, through torch.profiler).

    Args:
        call: the update.
        calls: how many calls to average over.
    """
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
