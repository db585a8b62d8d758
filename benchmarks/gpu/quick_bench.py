"""First figures from a GPU, the most telling ones first: the operator and its parts, the whole update, nn.LSTM.

python benchmarks/gpu/quick_bench.py --seconds 120 --out FOLDER

Every row is printed, and written to FOLDER/quick.json, as soon as it is measured. Whatever fails becomes a row that
says so, and the rest goes on. `--device cpu` measures tiny sizes, only to see that the script runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from townlet.bench import gpu, peers
from townlet.bench.problem import Gradients, Shape, draw, expected, ours
from townlet.support import devices

Call = Callable[[], object]

ONE = (Shape(64, 80, 512, 512), Shape(64, 80, 256, 256), Shape(64, 80, 128, 128), Shape(16, 8, 64, 128))
MANY = (Shape(64, 80, 256, 256, P=8), Shape(64, 80, 512, 512, P=8), Shape(64, 80, 128, 128, P=64))
UPDATES = (("R2D2", 1, 64, 80, 512, 512), ("default", 1, 16, 40, 96, 64), ("default", 8, 16, 40, 96, 64),
           ("R2D2", 8, 64, 80, 512, 512))  # fmt: skip
"""Name, P, B, S, H and the head's units of whole updates."""
TINY, TINY_MANY, TINY_UPDATES = (Shape(4, 3, 16, 32),), (Shape(4, 3, 16, 32, P=2),), (("tiny", 1, 4, 4, 16, 8),)

CHECKED = 64 * 80 * 512
"""B S H up to which a result is compared with the twin in float64, which takes long."""


class Bench:
    """Measures on one device until the time is over."""

    def __init__(self, device: torch.device, seconds: float, out: Path):
        self.device, self.out, self.end = device, out, time.monotonic() + seconds
        self.gpu = device.type == "cuda"
        self.rows: list[dict[str, Any]] = []

    def row(self, **values: Any) -> None:
        """Keep a row and print it."""
        self.rows.append(values)
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()), flush=True)
        (self.out / "quick.json").write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    def attempt(self, what: str, call: Call, least: float = 3.0) -> None:
        """Call it if `least` seconds are left; an error becomes a row."""
        if time.monotonic() > self.end - least:
            self.row(what="left out, no time", case=what)
            return
        try:
            call()
        except Exception as error:  # whatever it is, the next figure may still be had
            traceback.print_exc(limit=3)
            first = (str(error).splitlines() or [""])[0]
            self.row(what="failed", case=what, error=f"{type(error).__name__}: {first[:160]}")

    def milliseconds(self, call: Call, seconds: float = 0.4) -> float:
        """The median time of a call: CUDA events around calls that are queued without a wait; else the clock."""
        for _ in range(3):
            call()
        self._settle()
        begun = time.perf_counter()
        call()
        self._settle()
        inner = max(1, min(200, int(0.05 / max(time.perf_counter() - begun, 1e-6))))
        times: list[float] = []
        stop = time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < stop and len(times) < 40):
            times.append(self._sample(call, inner))
        return statistics.median(times)

    def _sample(self, call: Call, inner: int) -> float:
        if not self.gpu:
            begun = time.perf_counter()
            for _ in range(inner):
                call()
            return (time.perf_counter() - begun) * 1e3 / inner
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / inner

    def _settle(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    # ---- what is measured --------------------------------------------------------------------------------------------

    def peaks(self) -> None:
        self.row(what="peaks", **gpu.peaks(self.device))

    def operator(self, shape: Shape, dtype: torch.dtype) -> None:
        """The fused update as it stands and as a CUDA graph; then its parts."""
        problem = draw(shape, compute_dtype=dtype).on(self.device)
        call = ours(problem)
        error = None
        if shape.P == 1 and shape.B * shape.S * shape.H <= CHECKED:
            error = largest_error(call(), expected(problem))
        eager = self.milliseconds(call)
        graph = self.milliseconds(recorded(call)) if self.gpu else None
        tflops = shape.flops / min(eager, graph or eager) / 1e9
        case = {"case": str(shape), "dtype": short(dtype)}
        self.row(what="operator", **case, eager_ms=eager, graph_ms=graph, tflops=tflops, error=error)
        if self.gpu:
            for part, spent in gpu.profile(call, 5).items():
                self.row(what="part", **case, part=part, us=spent.seconds * 1e6, launches=spent.launches)

    def update(self, name: str, P: int, B: int, S: int, H: int, F: int, graph: bool) -> None:
        """The learner's whole update."""
        from update import Case, make_learner  # benchmarks/update.py

        case = Case(name, P, B, S, "mlp", H, F, burn_in=S // 2, n_step=3, rescale_eps=1e-3, sync_every=100)
        learner = make_learner(case, str(self.device), graph)
        for _ in range(6):
            learner.update()
        each = self.milliseconds(learner.update, 1.0)
        learner.population.check()
        refused = learner.replayed.refused if learner.replayed else ""
        sizes = {"case": f"{name}: P={P}, B={B}, S={S}, H={H}", "recorded": graph, "refused": refused}
        self.row(what="update", **sizes, ms=each, updates_per_s=1e3 / each, member_updates_per_s=P * 1e3 / each)

    def nn_lstm(self, shape: Shape, dtype: torch.dtype, tf32: bool) -> None:
        """What a user of torch would run. An error is shown, and judged by nobody: it is the peer's."""
        problem = draw(shape).on(self.device)
        call = peers.nn_lstm(problem, dtype, tf32=tf32)
        error = largest_error(call(), expected(problem))
        kind = "TF32" if tf32 else short(dtype)
        self.row(what="nn.LSTM", case=str(shape), dtype=kind, eager_ms=self.milliseconds(call), error=error)

    def everything(self) -> None:
        one, many, updates = (ONE, MANY, UPDATES) if self.gpu else (TINY, TINY_MANY, TINY_UPDATES)
        precisions = (torch.bfloat16, torch.float32)
        if self.gpu:
            self.attempt("peaks", self.peaks)
        self._operators(one[:1], precisions)
        for sizes in updates:
            for graph in (True, False) if self.gpu else (False,):
                self.attempt(f"update {sizes}", partial(self.update, *sizes, graph), 6.0)
        kinds = ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False))
        for shape in one[:3]:
            for dtype, tf32 in kinds:
                what = f"nn.LSTM {shape} {'TF32' if tf32 else short(dtype)}"
                self.attempt(what, partial(self.nn_lstm, shape, dtype, tf32))
        self._operators((*one[1:], *many), precisions)

    def _operators(self, shapes: tuple[Shape, ...], precisions: tuple[torch.dtype, ...]) -> None:
        for shape in shapes:
            for dtype in precisions:
                self.attempt(f"operator {shape} {short(dtype)}", partial(self.operator, shape, dtype))


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def largest_error(got: Gradients, want: Gradients) -> float:
    """Over all tensors, relative to the largest value of each."""
    return max(float((a.detach().double() - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))


def recorded(call: Call) -> Call:
    """The call as a CUDA graph that is replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="when to stop beginning new figures (default: 120)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder of quick.json (default: the working directory)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the script runs (default: cuda)")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    bench = Bench(devices.resolve(options.device), options.seconds, options.out)
    bench.everything()
    return 1 if any(row["what"] == "failed" for row in bench.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
