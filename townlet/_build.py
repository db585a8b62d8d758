"""What was built, and what it runs on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

__version__ = "0.1.0"


def build_config() -> dict[str, Any]:
    """Compiler, instruction sets, CUDA and torch: what a bug report needs. Plain values."""
    from . import _C, _native, ops

    return {
        "townlet": __version__,
        **_C.build_info(),
        "isa_levels": list(ops.ISA_LEVELS),
        "isa_in_use": ops.ISA,
        "isa_forced": os.environ.get("TOWNLET_ISA"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda_kernels": "loaded" if _native.CUDA else f"none: {_native.WHY_NOT_CUDA}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda_devices": torch.cuda.device_count(),
        "python": platform.python_version(),
    }
