"""Cases and tolerances for the operators' values and gradients, on the CPU, on a GPU and on the host shim.

Three metrics are taken of each tensor (largest error over largest value, 1 - cosine, relative L2). The tolerances stand
beside the worst that was observed over the instruction sets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import torch
from op_cases import Case, Deviation
from torch import Tensor

from townlet import ops

ODD = (1, 3, 17, 33, 129)

# Each is (scaled, 1 - cosine, relative L2); the worst observed over avx512, avx2 and portable stands beside it.
VALUES = Deviation(5e-6, 2e-12, 4e-6)  #              observed 1.1e-6, 2.9e-13, 9.3e-7
GRADIENTS = Deviation(2e-5, 1e-11, 1e-5)  #           observed 4.9e-6, 2.7e-12, 2.3e-6
BFLOAT16_VALUES = Deviation(2e-3, 2e-8, 4e-4)  #      observed 4.0e-4, 3.9e-9, 8.9e-5
BFLOAT16_GRADIENTS = Deviation(2e-2, 2e-5, 1.2e-2)  # observed 4.8e-3, 4.4e-6, 3.0e-3


def check(deviations: dict[str, Deviation], values: Deviation = VALUES, gradients: Deviation = GRADIENTS) -> None:
    for name, seen in deviations.items():
        allowed = gradients if name.startswith("grad.") else values
        assert all(s <= a for s, a in zip(seen, allowed, strict=True)), f"{name}: {seen}, allowed {allowed}"


def orthogonal_array() -> list[Case]:
    """L25: B, S, D, H and F over the five odd sizes, every pair of levels of every two of them; variants in turn."""
    cases = []
    for i in range(5):
        for j in range(5):
            B, S, D, H, F = (ODD[k % 5] for k in (i, j, i + j, i + 2 * j, i + 3 * j))
            n = 5 * i + j
            cases.append(
                Case(
                    P=(1, 2, 3)[n % 3],
                    B=B,
                    S=S,
                    D=D,
                    H=H,
                    F=None if n % 7 == 3 else F,
                    A=(6, 1, 3, 17, 33)[(i + 4 * j) % 5],
                    dueling=n % 3 != 1,
                    target=n % 6 != 5,
                    double_q=n % 4 != 2,
                    n_step=(1, 3, 5, 200)[n % 4],
                    burn_in=(S - 1, 0, S // 2)[n % 3],
                    rescale_eps=(0.0, 1e-3)[n % 2],
                    loss="mse" if n % 5 == 4 else "huber",
                    member_gamma=n % 2 == 0,
                    legal=n % 3 != 0,
                    weights=n % 4 != 3,
                    seed=n,
                )
            )
    return cases


BASE = Case(P=3, B=9, S=11, D=6, H=10, F=7, A=4)
VARIANTS = [
    BASE,
    replace(BASE, target=False),
    replace(BASE, target=False, double_q=False),
    replace(BASE, double_q=False),
    replace(BASE, double_q=False, legal=False),
    replace(BASE, dueling=False),
    replace(BASE, F=None),
    replace(BASE, F=None, dueling=False),
    replace(BASE, A=1),
    replace(BASE, n_step=1),
    replace(BASE, n_step=1, burn_in=0, rescale_eps=0.0),
    replace(BASE, n_step=11),
    replace(BASE, n_step=10**6),
    replace(BASE, burn_in=0),
    replace(BASE, burn_in=10),
    replace(BASE, rescale_eps=0.0),
    replace(BASE, rescale_eps=0.5),
    replace(BASE, loss="mse"),
    replace(BASE, huber_delta=0.05),
    replace(BASE, huber_delta=100.0),
    replace(BASE, eta=0.0),
    replace(BASE, eta=1.0),
    replace(BASE, member_gamma=False),
    replace(BASE, resets=False),
    replace(BASE, terminations=False),
    replace(BASE, padding=False),
    replace(BASE, resets=False, terminations=False, padding=False, legal=False, weights=False),
    replace(BASE, legal=False),
    replace(BASE, weights=False),
    replace(BASE, S=1, burn_in=0),
    replace(BASE, P=1, B=1),
]

ROUNDED = (
    replace(BASE, double_q=False, H=33, D=17, F=17),
    replace(BASE, double_q=False, H=17, F=None, dueling=False),
    replace(BASE, double_q=False, target=False, B=17, rescale_eps=0.0),
)


def unroll(lstm_unroll, inputs: list[Tensor], reset: Tensor | None, incoming: list[Tensor]) -> dict[str, Tensor]:
    """Results and gradients of one lstm_unroll under the given incoming gradients of y, h_T and c_T."""
    fresh = [v.detach().clone().requires_grad_() for v in inputs]
    out = lstm_unroll(*fresh, reset)
    torch.autograd.backward(out, [g.to(out[0]) for g in incoming])
    names = ("x", "h0", "c0", "w_ih", "w_hh", "bias")
    result = dict(zip(("y", "h_T", "c_T"), (v.detach() for v in out), strict=True))
    return result | {f"grad.{n}": v.grad for n, v in zip(names, fresh, strict=True) if v.grad is not None}


def unroll_case(P: int, B: int, T: int, D: int, H: int, seed: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Inputs, resets and incoming gradients, float32."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(P, B, T, D), (P, B, H), (P, B, H), (P, 4 * H, D), (P, 4 * H, H), (P, 4 * H)]
    inputs = [torch.randn(s, generator=g) for s in shapes]
    inputs[3] *= D**-0.5
    inputs[4] *= H**-0.5
    incoming = [torch.randn(s, generator=g) for s in ((P, B, T, H), (P, B, H), (P, B, H))]
    return inputs, torch.rand(P, B, T, generator=g) < 0.15, incoming


UNROLL_SIZES = [
    (1 + (i + j) % 3, ODD[i], ODD[j], ODD[(i + j) % 5], ODD[(i + 2 * j) % 5]) for i in range(5) for j in range(5)
]


ISAS = ("portable", "avx2", "avx512", "avx512_bf16")

NAMED = """
import sys, torch
from townlet import ops
assert ops.ISA == sys.argv[1], (ops.ISA, sys.argv[1])
torch.set_num_threads(1)
"""


def runs_with(isa: str, code: str) -> None:
    """Runs `code` in a process that is told which kernels to use; one that the CPU lacks is refused by name."""
    environment = {**os.environ, "TOWNLET_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", NAMED + code, isa], env=environment, capture_output=True, text=True)
    if isa in ops.ISA_LEVELS:
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert done.returncode != 0
        assert f"TOWNLET_ISA is '{isa}'" in done.stderr, done.stderr[-2000:]
