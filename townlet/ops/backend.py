"""Which implementation runs: what the compiled kernels are, whether one fits a call, and who looks through the call."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from .. import _native  # loads the libraries that register torch.ops.townlet

ON_CUDA = frozenset(["pack", "td_unroll", "lstm_unroll", "lstm_step"])
"""The operators that are compiled for CUDA. There the form of the others is the twin, a few of torch's operations."""
announced: set[str] = set()
"""The operators and kinds of tensors for which the fall-back to the reference was announced."""


def kernel_fits(op: str, like: Tensor, backend: str = "auto") -> bool:
    """Whether a compiled kernel of the operator takes tensors of this dtype on this device; if not, the twin runs.

    Args:
        op: the operator's name.
        like: a tensor of the call's dtype and device.
        backend: ``TDSpec.backend``.

    Returns:
        True for the compiled kernel. For a twin that nobody asked for, the first call warns the caller of ``op``.

    Raises:
        ValueError: ``backend`` is ``kernel``, and there is no such kernel.
    """
    exported = is_tracing() or torch.compiler.is_exporting()
    if backend == "reference" or exported:  # what is exported is to run where Townlet is not
        return False
    where = like.device.type
    if like.dtype == torch.float32 and (where == "cpu" or (where == "cuda" and _native.CUDA and op in ON_CUDA)):
        return True
    if where == "cuda" and op not in ON_CUDA:
        return False
    what = f"{str(like.dtype).removeprefix('torch.')} tensors on {where}"
    if where == "cuda" and not _native.CUDA:
        what += f" (no CUDA kernels: {_native.WHY_NOT_CUDA})"
    if backend == "kernel":
        places = "cpu or cuda" if _native.CUDA else "cpu"
        raise ValueError(f"spec.backend is 'kernel', but no compiled {op} takes {what}; expected float32 on {places}")
    if f"{op} {what}" not in announced:
        announced.add(f"{op} {what}")
        warnings.warn(f"townlet: no compiled {op} takes {what}; running the slow reference", stacklevel=3)
    return False


def traced() -> bool:
    """Whether torch.compile or torch.func looks through the call, and so needs the registered autograd formula.

    The formula registered with torch costs ten times as much per call as a ``torch.autograd.Function`` of our own.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
