"""Facts about the build and the machine, which bug reports, records and measurements share.

The compiled libraries and torch load when the first function is called, so that reading the version costs nothing.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"


def build_config() -> dict[str, Any]:
    """What a bug report needs to know about the build: compiler, instruction sets, CUDA, torch and Python.

    Returns:
        Name -> plain value (string, number, list or None).
    """
    import torch

    from . import _native
    from ._C import build_info

    return {
        "townlet": __version__,
        **build_info(),
        "isa_levels": list(_native.ISA_LEVELS),
        "isa_in_use": _native.ISA,
        "isa_forced": os.environ.get("TOWNLET_ISA"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda_kernels": "loaded" if _native.CUDA else f"none: {_native.WHY_NOT_CUDA}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda_devices": torch.cuda.device_count(),
        "python": platform.python_version(),
    }


def describe() -> dict[str, str]:
    """The facts of `build_config` and of the machine, in words: versions, instruction set, threads, GPU.

    Returns:
        Name -> value, both for a person to read.
    """
    import torch

    facts = {name.replace("_", " "): _shown(value) for name, value in build_config().items()}
    facts["machine"] = f"{platform.system()} {platform.machine()}, {cpu_name()}"
    facts["kernel in use"] = kernel_in_use()
    facts["CUDA kernel in use"] = cuda_kernel_in_use()
    facts["torch CPU capability"] = torch.backends.cpu.get_cpu_capability()
    facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    facts["GPU"] = _gpu()
    return facts


def cpu_name() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            return next(names, "unknown CPU")
    except OSError:
        return platform.processor() or "unknown CPU"


def kernel_in_use() -> str:
    """The implementation that ``td_unroll`` takes on the CPU with ``backend="auto"``, in words."""
    from . import _native

    return f"compiled C++ on CPU, {_native.ISA} ({_native.LANES} floats per vector)"


def cuda_kernel_in_use(where: torch.device | str = "cuda") -> str:
    """The implementation that ``td_unroll`` takes for CUDA tensors, in words."""
    import torch

    from . import _native

    if not _native.CUDA:
        return f"none ({_native.WHY_NOT_CUDA})"
    if not torch.cuda.is_available():
        return "none (no usable GPU)"
    form = os.environ.get("TOWNLET_CUDA_UNROLL")
    asked = f"TOWNLET_CUDA_UNROLL asks for {form}: " if form else ""
    plans = (f"H = {H} {name}: {plan_in_words(where, H, name)}" for H in (128, 256, 512) for name in ("fp32", "bf16"))
    return f"{asked}B = 64, S = 80, forward, " + "; ".join(plans)


def plan_in_words(where: torch.device | str, H: int, dtype: str) -> str:
    """The form that the recurrent kernels take on a GPU for two chains of 64 x 81.

    Args:
        where: the GPU.
        H: the number of LSTM units.
        dtype: "fp32" or "bf16".

    Returns:
        The plan in words; where the form that was asked for cannot run, the reason.
    """
    import torch

    from . import _native as _native  # loads the library that knows the plans

    index = torch.device(where).index or 0
    try:
        plan: str = torch.ops.townlet.unroll_plan(index, 1, 64, 81, H, dtype == "bf16", 2, False)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return plan


def form_refused(
    where: torch.device, P: int, B: int, T: int, H: int, *, bf16: bool = False, chains: int = 1, gradients: bool = True
) -> str:
    """Why the form that TOWNLET_CUDA_UNROLL asks for cannot run a problem; "" where it can, or where none is asked for.

    Args:
        where: the device; the variable concerns CUDA devices alone.
        P, B, T, H: members, sequences, time steps and LSTM units.
        bf16: whether the operands are bfloat16.
        chains: networks that are unrolled at the same time: 2 with a target network.
        gradients: whether the pass back through time runs too.
    """
    import torch

    from . import _native as _native  # loads the library that knows the plans

    if where.type != "cuda" or not os.environ.get("TOWNLET_CUDA_UNROLL"):
        return ""
    passes = [(chains, False), (1, True)] if gradients else [(chains, False)]
    try:
        for together, backward in passes:
            torch.ops.townlet.unroll_plan(where.index or 0, P, B, T, H, bf16, together, backward)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
    if torch.version.cuda:
        return f"none usable (torch built for CUDA {torch.version.cuda})"
    return "none (CPU build of torch)"
