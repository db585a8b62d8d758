"""Imports townlet, says which kernels it has, and checks one update in both precisions: `one_check.py [cuda]`."""

from __future__ import annotations

import sys

import torch

from townlet import _build, _native
from townlet.bench.problem import NAMES, Shape, draw, expected, judge, ours
from townlet.support import devices

SHAPE = Shape(B=16, S=8, D=64, H=128)


def main() -> int:
    device = devices.resolve(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    print(f"torch {torch.__version__} on {devices.device_name(device)}")
    print(f"CUDA kernels loaded: {_native.CUDA}{f' ({_native.WHY_NOT_CUDA})' if _native.WHY_NOT_CUDA else ''}")
    if device.type == "cuda":
        print(_build.cuda_kernel_in_use())
        if not _native.CUDA:
            return 1
    right = True
    for dtype in (torch.float32, torch.bfloat16):
        problem = draw(SHAPE, compute_dtype=dtype).on(device)
        want = expected(problem)
        update = ours(problem)
        for name, a, b in zip(NAMES, update(), want, strict=True):
            print(f"{dtype!s:15} {name:5} error {float((a.detach().double() - b).abs().max() / b.abs().max()):.1e}")
        verdict = judge(f"{SHAPE}, {dtype}", update, want, dtype)
        right = right and not isinstance(verdict, str)
        print(verdict if isinstance(verdict, str) else f"{dtype!s:15} is right: {verdict:.1e} at most")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
