"""The operator and the whole update on a GPU, beside cuDNN, TorchRL's Triton kernel and a loop; and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import update as updates
from peers import optional

from townlet.bench import gpu, peers
from townlet.bench.problem import TF32, Gradients, Precision, Problem, Shape, check, draw, expected, judge, ours
from townlet.bench.results import TIMES, Measurements, times
from townlet.support import devices

SHAPES = (
    Shape(16, 8, 64, 128),
    Shape(64, 32, 128, 256),
    Shape(64, 80, 128, 256),
    Shape(64, 80, 256, 512),
    Shape(32, 40, 128, 64, P=8),
    Shape(64, 80, 128, 256, P=16),
)
TINY = (Shape(4, 3, 16, 32), Shape(4, 3, 16, 32, P=2))

OURS, OURS_BF16 = "townlet fp32", "townlet bf16"
LOOP, CUDNN, CUDNN_BF16 = "(a) step loop", "(b) nn.LSTM, cuDNN", "(c) nn.LSTM, cuDNN bf16"
CUDNN_TF32 = "(b) nn.LSTM, cuDNN TF32"
TRITON, TRITON_BF16 = "(e) TorchRL Triton, TF32", "(e) TorchRL Triton, bf16"

Candidate = tuple[Callable[[], Gradients], Precision]


def _start(suite: str, title: str, quick: bool) -> tuple[Measurements, torch.device]:
    """Begin a suite: measure the GPU's peaks.

    Raises:
        ValueError: there is no GPU.
    """
    device = devices.resolve("cuda")
    report = Measurements(suite, title, threads=torch.get_num_threads(), settings={"quick": quick})
    report.device, report.peaks = devices.device_name(device), gpu.peaks(device)
    if torch.backends.cuda.matmul.allow_tf32:
        report.note("TF32 is allowed in torch's products: fp32 figures are not of full fp32")
    return report, device


def _each_member(make: Callable[[Problem], Callable[[], Gradients]], problem: Problem) -> Callable[[], Gradients]:
    """Call a peer for each member in turn, on one stream, because peers know only one member."""
    problems = [_member(problem, p) for p in range(problem.shape.P)]
    calls = [make(one) for one in problems]

    def run() -> Gradients:
        return [torch.cat(parts) for parts in zip(*(call() for call in calls), strict=True)]

    return calls[0] if len(calls) == 1 else run


def _member(problem: Problem, p: int) -> Problem:
    def one(v: torch.Tensor | None) -> torch.Tensor | None:
        return None if v is None else v.detach()[p : p + 1].clone().requires_grad_(v.requires_grad)

    parts = (type(part)._make(map(one, part)) for part in problem[1:4])
    return Problem(problem.shape._replace(P=1), *parts, problem.spec)


def _candidates(report: Measurements, problem: Problem, half: Problem) -> dict[str, Candidate]:
    full, rounded = torch.float32, torch.bfloat16
    found: dict[str, Candidate] = {
        OURS: (ours(problem), full),
        OURS_BF16: (ours(half), rounded),
        LOOP: (_each_member(peers.step_loop, problem), full),
        CUDNN: (_each_member(peers.nn_lstm, problem), full),
        CUDNN_TF32: (_each_member(lambda p: peers.nn_lstm(p, tf32=True), problem), TF32),
        CUDNN_BF16: (_each_member(lambda p: peers.nn_lstm(p, rounded), half), rounded),
    }
    module, reason = optional("torchrl_lstm")
    if module is None:
        report.note(f"{TRITON}: {reason}")
        return found
    try:
        precisions: dict[str, tuple[Problem, Precision]] = {TRITON: (problem, TF32), TRITON_BF16: (half, rounded)}
        for name, (which, precision) in precisions.items():
            found[name] = (_each_member(module.triton, which), precision)
    except (RuntimeError, TypeError) as error:
        report.note(f"{TRITON}: {str(error).splitlines()[0]}")
    return found


def _checked(report: Measurements, shape: Shape, candidates: dict[str, Candidate], want: Gradients) -> dict[str, float]:
    """The errors of the candidates that may be timed. A peer that is wrong or fails is left out, and noted.

    Raises:
        WrongResult: our own result is wrong.
    """
    errors: dict[str, float] = {}
    for name, (call, precision) in candidates.items():
        if name in (OURS, OURS_BF16):
            errors[name] = check(name, call(), want, precision)
            continue
        verdict = judge(f"{shape}, {name}", call, want, precision)
        if isinstance(verdict, str):
            report.note(verdict)
        else:
            errors[name] = verdict
    return errors


def op(quick: bool) -> Measurements:
    """Six shapes in fp32 and bf16, beside all peers. Each result is checked before anything is timed."""
    report, device = _start("gpu", "One update (forward, TD, all weight gradients) on a GPU", quick)
    columns = [("case", "B, S, D, H", ""), ("name", "", ""), *TIMES, ("gflops", "GFLOP/s", ".0f")]
    columns += [("share", "of torch.mm", ".1%"), ("ratio", "time / townlet", ".2fx"), ("error", "error", ".0e")]
    rows = report.table("time / townlet: against ours in the same precision, minimum by minimum", columns)
    against: dict[str, dict[str, float]] = {CUDNN: {}, CUDNN_BF16: {}}
    for shape in TINY if quick else SHAPES:
        problem, half = (draw(shape, compute_dtype=t).on(device) for t in (torch.float32, torch.bfloat16))
        candidates = _candidates(report, problem, half)
        errors = _checked(report, shape, candidates, expected(problem))
        timings = gpu.interleave({n: candidates[n][0] for n in errors}, rounds=3 if quick else 20)
        for name, timing in timings.items():
            bf16 = name.endswith("bf16")
            ratio = timing.minimum / timings[OURS_BF16 if bf16 else OURS].minimum
            row = {"case": str(shape), "name": name, "ratio": ratio, "error": errors[name]}
            rows.append(row | times(timing, shape.flops, report.peaks["bf16" if bf16 else "fp32"]))
            if name in against:
                against[name][str(shape)] = ratio
    report.bar("against (b) on a GPU, fp32", against[CUDNN], bar=1.0, aim=None)
    report.bar("against (c) on a GPU, bf16", against[CUDNN_BF16], bar=1.0, aim=None)
    return report


def roofline(quick: bool) -> Measurements:
    """What the kernels of each part of an update take, beside what arithmetic and memory allow."""
    report, device = _start("gpu-roofline", "The parts of an update on a GPU, and their bounds", quick)
    columns = [("case", "B, S, D, H", ""), ("name", "", ""), ("us", "us", ".1f"), ("launches", "kernels", ".0f")]
    columns += [("step", "us / time step", ".2f"), ("gflops", "GFLOP/s", ".0f"), ("gbytes", "GB/s", ".0f")]
    columns += [("bound", "bound, us", ".2f"), ("by", "by", ""), ("share", "bound / time", ".1%")]
    rows = report.table("bound: the larger of operations at torch.mm's rate and bytes at a copy's", columns)
    for shape in TINY if quick else SHAPES:
        for name, dtype in ((OURS, torch.float32), (OURS_BF16, torch.bfloat16)):
            problem = draw(shape, compute_dtype=dtype).on(device)
            call = ours(problem)
            check(name, call(), expected(problem), dtype)
            bf16 = dtype == torch.bfloat16
            rows += _parts(shape, name, gpu.profile(call), report.peaks, bf16)
    return report


def _parts(
    shape: Shape, name: str, spent: dict[str, gpu.Spent], peaks: dict[str, float], bf16: bool
) -> list[dict[str, Any]]:
    """The rows of one update."""
    todo = gpu.work(shape, 2 if bf16 else 4)
    rows = []
    for part, (seconds, launches) in spent.items():
        row: dict[str, Any] = {"case": str(shape), "name": f"{name}: {part}", "us": seconds * 1e6, "launches": launches}
        if part in (gpu.FORWARD, gpu.BACKWARD):
            row["step"] = seconds * 1e6 / (shape.S + (part == gpu.FORWARD))
        if part in todo:
            flops, moved = todo[part]
            bound = todo[part].bound(peaks["bf16" if bf16 else "fp32"], peaks["bytes"])
            row |= {"gflops": flops / seconds / 1e9, "gbytes": moved / seconds / 1e9, "bound": bound * 1e6}
            row |= {"by": "memory" if bound == moved / peaks["bytes"] else "arithmetic", "share": bound / seconds}
        rows.append(row)
    return rows


def update(quick: bool) -> Measurements:
    """The learner's whole update, as it stands and recorded as a CUDA graph."""
    report, device = _start("gpu-update", "The whole learner update on a GPU", quick)
    columns = [("case", "", ""), ("name", "", ""), *TIMES, ("ratio", "time / recorded", ".2fx")]
    rows = report.table("sampling, encoders, operator, Adam, priorities and sync; B, S as in suite `update`", columns)
    for case in updates.CASES[:1] if quick else updates.CASES:
        learners = {f"recorded={graph}": updates.make_learner(case, str(device), graph) for graph in (True, False)}
        for _ in range(4 * case.sync_every + 4):  # both kinds of update, with and without a sync, are recorded
            losses = [learner.update()["loss"] for learner in learners.values()]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
        timings = gpu.interleave({n: learner.update for n, learner in learners.items()}, rounds=3 if quick else 20)
        for learner in learners.values():
            learner.population.check()
        refused = learners["recorded=True"].replayed.refused
        if refused:
            report.note(f"{case.name}: not recorded: {refused}")
        for name, timing in timings.items():
            ratio = timing.minimum / timings["recorded=True"].minimum
            rows.append({"case": case.name, "name": name, "ratio": ratio} | times(timing))
    return report
