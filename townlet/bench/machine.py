"""The machine that a figure was measured on: its processors, its load, and the most that its cores can do."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .. import _C, ops
from .._build import __version__, cpu_name
from .timing import interleave

_THREADS = Path("/proc/self/task")


def pin(threads: int) -> list[int]:
    """Give torch ``threads`` threads, and this process as many processors.

    Threads that exist already are moved too. The process gets the highest-numbered of the processors that it was
    started with, because the lowest serve interrupts on many machines.

    Returns:
        The processors' numbers; an empty list where the system cannot pin a process.

    Raises:
        ValueError: there are fewer processors than threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(threads)
        return []
    if not 1 <= threads <= len(_ALLOWED):
        raise ValueError(f"threads is {threads}; expected 1..{len(_ALLOWED)}, the processors this process may use")
    chosen = _ALLOWED[-threads:]
    torch.set_num_threads(threads)
    for task in os.listdir(_THREADS) if _THREADS.exists() else ["0"]:
        try:
            os.sched_setaffinity(int(task), chosen)
        except ProcessLookupError:  # the thread has ended in the meantime
            continue
    return chosen


_ALLOWED: list[int] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def processors() -> int:
    """How many processors this process was given when it started."""
    return len(_ALLOWED) or os.cpu_count() or 1


def machine_facts() -> dict[str, Any]:
    """What a reader of the figures needs to know of the machine and the build, as plain values."""
    return {
        "cpu": cpu_name(),
        "processors": processors(),
        "isa": ops.ISA,
        "isa_levels": list(ops.ISA_LEVELS),
        "caches": _caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "townlet": __version__,
        "compiler": " ".join(str(_C.build_info()[k]) for k in ("compiler", "compiler_version")),
    }


def _caches() -> str:
    """The caches of processor 0 as the kernel lists them; an empty text where it does not."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        found.append(f"L{level}{kind[:1].lower() if kind != 'Unified' else ''} {size}")
    return ", ".join(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "?"


class LoadWatch:
    """Watches what else the machine does while something is measured, from the moment the object is made."""

    def __init__(self) -> None:
        self._load = _load_average()
        self._before = _cpu_times()

    def so_far(self) -> dict[str, Any]:
        """What ran since the object was made.

        Returns:
            The load averages over one minute as "load_before" and "load_after", and the share of processor time that
            the hypervisor gave to others as "steal", which is None where the system does not say.
        """
        after = _cpu_times()
        steal = None
        if self._before and after and sum(after) > sum(self._before):
            steal = (after[7] - self._before[7]) / (sum(after) - sum(self._before))
        return {"load_before": self._load, "load_after": _load_average(), "steal": steal}


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _cpu_times() -> list[int]:
    """Time since boot in user, nice, system, idle, iowait, irq, softirq, steal; [] where there is no /proc/stat."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            numbers = [int(n) for n in file.readline().split()[1:9]]
    except OSError:
        return []
    return numbers if len(numbers) == 8 else []


def peaks(threads: int, seconds: float = 0.3) -> dict[str, float]:
    """The most FLOP/s that ``threads`` cores reach.

    Args:
        threads: the number of cores.
        seconds: how long each peak is measured.

    Returns:
        "fp32" and "bf16" from loops on registers alone, and "mm" from torch.mm of 1024 x 1024 matrices. "bf16" is 0
        where the CPU has no bfloat16 dot product.
    """
    found = {"fp32": _loop_peak(False, threads, seconds), "bf16": _loop_peak(True, threads, seconds)}
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    with torch.no_grad():
        timing = interleave({"mm": lambda: torch.mm(a, b)}, rounds=5, sample=seconds / 5)["mm"]
    return {**found, "mm": 2 * 1024**3 / timing.minimum}


def _loop_peak(bf16: bool, threads: int, seconds: float) -> float:
    with ThreadPoolExecutor(threads) as pool:
        return sum(flops for _, flops in pool.map(lambda _: _C.measure_peak(bf16, seconds), range(threads)))
