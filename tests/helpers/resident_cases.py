"""The resident CUDA kernels on the host shim: building them, calling them, and their float64 twin."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from paths import ROOT, TESTS
from torch import Tensor

from townlet.ops import reference

SINGLE, CLUSTER, GRID = 0, 1, 2


def in_words(form: str) -> str:
    """What the plan says where TOWNLET_CUDA_UNROLL asks for a form."""
    kind, _, rest = form.partition(":")
    blocks, _, rows = rest.partition("x")
    groups = {
        "single": "one block",
        "cluster": f"cluster of {blocks} blocks",
        "grid": f"cooperative grid of {blocks} blocks",
    }
    return "a launch per step" if kind == "step" else f"resident, {groups[kind]}, {rows or 16} rows"


FORMS = {
    form: in_words(form)
    for form in re.findall(r'"(.+?)"', (ROOT / "csrc" / "cuda" / "forms.inl").read_text(encoding="utf-8"))
}
"""Forms to ask for by TOWNLET_CUDA_UNROLL, and what the plan then says."""


# the runtime switches between fibers behind the back of ThreadSanitizer, and tells it so itself (EMU_TSAN)
FLAGS = ["-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing", "-fPIC"]


def compile_shim(out: Path, *sources: str, sanitize: str = "", shared: bool = True) -> Path:
    """Compile sources of tests/emu together with the shim's runtime into a library or a program."""
    compiler = os.environ.get("CXX", "c++")
    flags = [*FLAGS, "-pthread", "-O1" if sanitize else "-O2", f"-I{TESTS / 'emu'}"]
    instrument = [f"-fsanitize={sanitize}"] if sanitize else []
    objects = []
    for name in (*sources, "emu_rt.cpp"):
        runtime = name == "emu_rt.cpp" and sanitize == "thread"
        objects.append(str(out.with_name(f"{out.name}-{name}.o")))
        own = ["-DEMU_TSAN"] if runtime else instrument
        command = [compiler, *flags, *own, "-c", str(TESTS / "emu" / name), "-o", objects[-1]]
        subprocess.run(command, check=True)
    link = ["-shared"] if shared else []
    subprocess.run([compiler, *link, *instrument, *objects, "-pthread", "-o", str(out)], check=True)
    return out


class Shim:
    """The kernels behind the C functions of tests/emu/resident_emu.cpp."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        for f in (self.lib.emu_forward, self.lib.emu_backward, self.lib.emu_site):
            f.restype = ctypes.c_char_p

    def set(self, order: int = 0, ignore: int = -1) -> None:
        """The order in which threads and blocks run, and the place of a barrier to be left out."""
        self.lib.emu_set(order, ignore)

    def sites(self) -> list[str]:
        """The places of all barriers met so far; the index is what `set(ignore=)` takes."""
        return [self.lib.emu_site(i).decode() for i in range(self.lib.emu_sites())]

    def plan(
        self, gpu: tuple[int, int], n: tuple[int, ...], clusters: Mapping[int, int] = MappingProxyType({})
    ) -> dict[str, int]:
        """The plan for a GPU (compute capability, SMs) and P, B, T, H, bf16, chains, backward.

        clusters: by number of blocks, how many clusters the driver says run at the same time.
        """
        out = (ctypes.c_int64 * 7)()
        self.lib.emu_set_clusters(0, -1)
        for blocks, at_once in clusters.items():
            self.lib.emu_set_clusters(blocks, at_once)
        self.lib.emu_plan((ctypes.c_int64 * 2)(*gpu), (ctypes.c_int64 * 7)(*n), out)
        self.lib.emu_set_clusters(0, -1)
        return dict(zip(("resident", "exchange", "blocks", "units", "rows", "shared", "limit"), out, strict=True))

    def call(self, function: str, sizes: list[int], plan: Plan, tensors: list[Tensor | None]) -> None:
        """Call a kernel; RuntimeError with the shim's message when it fails."""
        assert all(v is None or v.is_contiguous() for v in tensors)
        pointers = (ctypes.c_void_p * len(tensors))(*(None if v is None else v.data_ptr() for v in tensors))
        numbers = [(ctypes.c_int64 * len(v))(*v) for v in (sizes, [plan.exchange, plan.blocks, plan.rows])]
        message = getattr(self.lib, function)(*numbers, pointers).decode()
        if message:
            raise RuntimeError(message)


class Plan(NamedTuple):
    """A variant of the kernels: how blocks exchange states, how many share a chain, rows of a batch tile."""

    exchange: int
    blocks: int
    rows: int = 16


@dataclass(frozen=True)
class Sizes:
    """Of one problem; `first`: steps of burn-in."""

    P: int = 2
    B: int = 5
    T: int = 4
    H: int = 19
    first: int = 1
    bf16: bool = False
    resets: bool = True
    finals: bool = True  # gradients of the final states come in


class Network(NamedTuple):
    """Inputs of one chain."""

    gx: Tensor
    w_hh: Tensor
    h0: Tensor
    c0: Tensor
    reset: Tensor | None


def draw(s: Sizes, seed: int = 0) -> tuple[Network, Network, list[Tensor]]:
    """Online and target chain, and the gradients of y, h_T and c_T, in float32."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=g) * scale

    reset = torch.rand(s.P, s.B, s.T, generator=g) < 0.2 if s.resets else None

    def network() -> Network:
        w_hh = normal(s.P, 4 * s.H, s.H, scale=s.H**-0.5)
        state = normal(s.P, s.B, s.H, scale=0.5), normal(s.P, s.B, s.H)
        return Network(normal(s.P, s.B, s.T, 4 * s.H), w_hh, *state, reset)

    gradients = [normal(s.P, s.B, s.T, s.H), normal(s.P, s.B, s.H), normal(s.P, s.B, s.H)]
    return network(), network(), gradients


def twin(s: Sizes, n: Network, gradients: list[Tensor] | None = None) -> dict[str, Tensor]:
    """The chain in float64, and with `gradients` of y, h_T and c_T what flows back to gx, h0 and c0."""
    dtype = torch.bfloat16 if s.bf16 else torch.float32
    gx, h0, c0 = (v.double().requires_grad_() for v in (n.gx, n.h0, n.c0))
    h, c, ys, cs = h0, c0, [], []
    for t in range(s.T):
        if t == s.first and t > 0:
            h, c = h.detach(), c.detach()
        if n.reset is not None:
            h, c = (v.masked_fill(n.reset[:, :, t, None], 0.0) for v in (h, c))
        z = gx[:, :, t] + reference._matmul(h, n.w_hh.double(), dtype)
        i, f, g, o = z.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(h)
        cs.append(c)
    out = {"y": torch.stack(ys, 2), "c": torch.stack(cs, 2), "h_final": h, "c_final": c}
    if gradients is not None:
        dy, dh, dc = (v.double() for v in gradients)
        loss = (out["y"][:, :, s.first :] * dy[:, :, s.first :]).sum()
        if s.finals:
            loss = loss + (h * dh).sum() + (c * dc).sum()
        grads = torch.autograd.grad(loss, (gx, h0, c0), allow_unused=True)
        for name, v, like in zip(("dgates", "dh0", "dc0"), grads, (gx, h0, c0), strict=True):
            out[name] = torch.zeros_like(like) if v is None else v
    return {k: v.detach() for k, v in out.items()}


def weights(s: Sizes, n: Network) -> Tensor:
    """w_hh as the kernels take it."""
    return n.w_hh.to(torch.bfloat16) if s.bf16 else n.w_hh


def forward(shim: Shim, plan: Plan, s: Sizes, *chains: Network, save: bool = True) -> list[dict[str, Tensor]]:
    """Unroll one or two chains in one launch; only the first saves its gates and cell states."""
    results: list[dict[str, Tensor]] = []
    tensors: list[Tensor | None] = []
    for k, n in enumerate(chains):
        y = torch.full((s.P, s.B, s.T, s.H), float("nan"))
        out: dict[str, Any] = {"y": y, "h_final": n.h0 * float("nan"), "c_final": n.h0 * float("nan")}
        if save and k == 0:
            out["gates"], out["c"] = n.gx.clone(), y.clone()  # in place of the inputs, as the operator does
        gx = out.get("gates", n.gx)
        out["held"] = weights(s, n)
        tensors += [gx, out["held"], n.h0, n.c0, n.reset, y, out.get("gates"), out.get("c")]
        tensors += [out["h_final"], out["c_final"]]
        results.append(out)
    shim.call("emu_forward", [s.P, s.B, s.T, s.H, int(s.bf16), len(chains)], plan, tensors)
    for out in results:
        del out["held"]
    return results


def backward(
    shim: Shim, plan: Plan, s: Sizes, n: Network, saved: dict[str, Tensor], gradients: list[Tensor]
) -> dict[str, Tensor]:
    """Gradients of the pre-activations and of the first state, from what `forward` saved."""
    held = weights(s, n)
    out = {"dgates": saved["gates"].clone(), "dh0": n.h0 * float("nan"), "dc0": n.h0 * float("nan")}
    finals = gradients[1:] if s.finals else [None, None]
    tensors = [out["dgates"], saved["c"], n.c0, held, n.reset, gradients[0], *finals, out["dh0"], out["dc0"]]
    shim.call("emu_backward", [s.P, s.B, s.T, s.H, int(s.bf16), s.first], plan, tensors)
    return out


def run(shim: Shim, plan: Plan, s: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Everything the kernels compute for one problem, target chain beside the online one."""
    online, target, gradients = draw(s, seed)
    a, b = forward(shim, plan, s, online, target)
    return a | backward(shim, plan, s, online, a, gradients) | {f"target.{k}": v for k, v in b.items()}


def expected(s: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """What `run` should return, without the gates."""
    online, target, gradients = draw(s, seed)
    b = twin(s, target)
    return twin(s, online, gradients) | {f"target.{k}": b[k] for k in ("y", "h_final", "c_final")}
