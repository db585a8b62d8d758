"""Loads the compiled libraries and says which instruction sets and kernels they hold.

torch is imported first, since it brings libtorch_cpu and the one OpenMP runtime.
"""

from __future__ import annotations

import importlib.util

import torch


def _load(name: str) -> bool:
    # an editable install keeps the libraries in another folder than this file, and find_spec finds them there too
    spec = importlib.util.find_spec(f"{__package__}.{name}")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


def _load_cuda() -> tuple[bool, str]:
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA"
    try:
        return (True, "") if _load("_cuda") else (False, "townlet was built without nvcc")
    except OSError as error:
        return False, f"they cannot be loaded ({error})"


if not _load("_ops"):
    raise ImportError(
        "townlet's compiled operators (townlet._ops) are not beside its Python files. Either the source tree in the "
        "working directory hides an installed townlet (change directory, or start the `townlet` or `pytest` command "
        "instead of `python -m`), or townlet is not installed: pip install -c constraints.txt -e ."
    )

CUDA, WHY_NOT_CUDA = _load_cuda()
"""Whether the operators' CUDA kernels are loaded, and the reason in words where they are not."""

_ISA_BITS = {"portable": 1, "avx2": 2, "avx512": 4, "avx512_bf16": 8}
LANES: int = torch.ops.townlet.lanes()
"""The number of floats in one vector of the kernels in use; padded sizes are multiples of it."""
ISA_LEVELS: tuple[str, ...] = tuple(k for k, v in _ISA_BITS.items() if torch.ops.townlet.isa_levels() & v)
"""The instruction sets that this CPU runs and that kernels were built for."""
ISA: str = next(k for k, v in _ISA_BITS.items() if v == torch.ops.townlet.isa())
"""The instruction set of the kernels in use. The environment variable TOWNLET_ISA forces one that the CPU runs."""
