"""The fused operator beside others that compute its update: over shapes, with resets, threads and populations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peers import optional, populations

from townlet.bench import peers
from townlet.bench.problem import Gradients, Problem, Shape, check, draw, expected, ours
from townlet.bench.results import TIMES, Measurements, geometric_mean, times
from townlet.bench.timing import interleave

SHAPES = (
    Shape(16, 8, 64, 128),
    Shape(16, 8, 256, 256),
    Shape(32, 16, 64, 128),
    Shape(64, 32, 128, 256),
    Shape(64, 80, 128, 256),
)
TINY = (Shape(4, 3, 16, 32), Shape(32, 3, 16, 32))

OURS, OURS_BF16 = "townlet fp32", "townlet bf16"
A, B, C, C_AUTOCAST = "(a) step loop", "(b) nn.LSTM", "(c) nn.LSTM bf16", "(c) nn.LSTM autocast"
D, E, F = "(d) torch.compile of (b)", "(e) TorchRL, 2% resets", "(f) JAX scan"
G_LOOP, G_VMAP = "(g) module loop", "(g) vmap"

Candidate = tuple[Callable[[], Gradients], torch.dtype]


def _foreign(report: Measurements, name: str, module: str, problem: Problem) -> dict[str, Candidate]:
    """A peer that needs another package. Where the package is missing, a note says so."""
    found, reason = optional(module)
    if found is None:
        report.note(f"{name}: {reason}")
        return {}
    return {name: (found.update(problem), torch.float32)}


def _checked(candidates: dict[str, Candidate], want: Gradients) -> dict[str, float]:
    """The error of each candidate.

    Raises:
        WrongResult: a candidate computes something else.
    """
    return {name: check(name, call(), want, dtype) for name, (call, dtype) in candidates.items()}


def _columns(*more: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    return [("case", "B, S, D, H", ""), ("name", "", ""), *TIMES, ("gflops", "GFLOP/s", ".0f"), *more]


def grid(quick: bool) -> Measurements:
    """Five shapes in fp32 and bf16 on one thread, beside all peers."""
    title = "One update (forward, TD, all weight gradients) on one thread"
    report = Measurements("op", title, threads=1, settings={"quick": quick}).start()
    more = (("share", "of peak", ".0%"), ("ratio", "time / townlet", ".2fx"), ("error", "error", ".0e"))
    rows = report.table("time / townlet: against ours in the same precision, minimum by minimum", _columns(*more))
    share: dict[str, float] = {}
    ratios: dict[str, dict[str, float]] = {name: {} for name in (A, B, C, D, F)}
    own: dict[str, float] = {}
    native_bf16 = report.peaks["bf16"] > 0
    for shape in TINY if quick else SHAPES:
        problem, half = draw(shape), draw(shape, compute_dtype=torch.bfloat16)
        candidates: dict[str, Candidate] = {
            OURS: (ours(problem), torch.float32),
            OURS_BF16: (ours(half), torch.bfloat16),
            A: (peers.step_loop(problem), torch.float32),
            B: (peers.nn_lstm(problem), torch.float32),
            C: (peers.nn_lstm(half, torch.bfloat16), torch.bfloat16),
            C_AUTOCAST: (peers.nn_lstm_autocast(half), torch.bfloat16),
            **_foreign(report, D, "compiled", problem),
            **_foreign(report, F, "jax_scan", problem),
        }
        errors = _checked(candidates, expected(problem))
        timings = interleave({n: call for n, (call, _) in candidates.items()}, rounds=3 if quick else 15, budget=40)
        case = str(shape)
        for name, timing in timings.items():
            bf16 = candidates[name][1] == torch.bfloat16
            peak = report.peaks["bf16" if bf16 and native_bf16 else "fp32"]
            ratio = timing.minimum / timings[OURS_BF16 if bf16 else OURS].minimum
            rows.append(
                {"case": case, "name": name, "ratio": ratio, "error": errors[name]} | times(timing, shape.flops, peak)
            )
            if name in ratios:
                ratios[name][case] = ratio
        ratios[C][case] = min(timings[n].minimum for n in (C, C_AUTOCAST)) / timings[OURS_BF16].minimum
        share[case] = shape.flops / timings[OURS].minimum / report.peaks["fp32"]
        if shape.H >= 256:
            own[case] = timings[OURS].minimum / timings[OURS_BF16].minimum
    report.peaks_again()
    report.bar("share of the FMA peak, 1 thread, fp32", share, bar=0.75, aim=0.9, form=".0%")
    report.bar("against (b), 1 thread, fp32, each", ratios[B], bar=1.4, aim=None)
    report.bar("against (b), geometric mean", {"all shapes": geometric_mean(ratios[B].values())}, bar=1.6, aim=None)
    if native_bf16:
        report.bar("against the better of (c), bf16", ratios[C], bar=1.4, aim=2.0)
        report.bar("bf16 against own fp32, H >= 256", own, bar=1.6, aim=2.0)
    for name in (D, F):
        report.bar(f"against {name}, 1 thread", ratios[name], bar=1.4, aim=2.0)
    report.bar("against (a)", ratios[A], bar=5.0, aim=8.0)
    return report


def resets(quick: bool) -> Measurements:
    """Episodes that begin inside sequences: our operator with and without them, TorchRL's with them."""
    report = Measurements(
        "resets", "Resets inside the sequences, one thread", threads=1, settings={"quick": quick}
    ).start()
    rows = report.table("2% of the observations open an episode", _columns(("ratio", "time / townlet 2%", ".2fx")))
    kept: dict[str, float] = {}
    against: dict[str, float] = {}
    with_resets = f"{OURS}, 2% resets"
    for shape in TINY if quick else SHAPES:
        plain, cut = draw(shape), draw(shape, resets=0.02)
        candidates: dict[str, Candidate] = {
            with_resets: (ours(cut), torch.float32),
            **_foreign(report, E, "torchrl_lstm", cut),
        }
        _checked(candidates, expected(cut))
        none: dict[str, Candidate] = {OURS: (ours(plain), torch.float32)}
        _checked(none, expected(plain))
        candidates = none | candidates
        timings = interleave({n: call for n, (call, _) in candidates.items()}, rounds=3 if quick else 15, budget=25)
        case = str(shape)
        for name, timing in timings.items():
            ratio = timing.minimum / timings[with_resets].minimum
            rows.append({"case": case, "name": name, "ratio": ratio} | times(timing, shape.flops))
        kept[case] = timings[OURS].minimum / timings[with_resets].minimum
        if E in timings:
            against[case] = timings[E].minimum / timings[with_resets].minimum
    report.bar("2% resets in the stream against none", kept, bar=0.97, aim=1.0)
    report.bar("against (e) with 2% resets", against, bar=6.0, aim=10.0)
    return report


def _on_threads(threads: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        torch.set_num_threads(threads)
        return call()

    return run


def threads(quick: bool) -> Measurements:
    """Our operator and nn.LSTM on one and two threads, where B is large enough to split."""
    report = Measurements("threads", "Two threads against one", threads=2, settings={"quick": quick}).start()
    more = (("share", "of peak", ".0%"), ("ratio", "1 thread / this", ".2fx"))
    rows = report.table("of peak: that of as many threads", _columns(("threads", "threads", "d"), *more))
    speedup: dict[str, float] = {}
    for shape in TINY if quick else SHAPES:
        if shape.B < 32:
            continue
        problem = draw(shape)
        want = expected(problem)
        calls = {}
        for name, call in ((OURS, ours(problem)), (B, peers.nn_lstm(problem))):
            check(name, call(), want)
            calls |= {f"{name}|{n}": _on_threads(n, call) for n in (1, 2)}
        timings = interleave(calls, rounds=3 if quick else 15, budget=30)
        torch.set_num_threads(2)
        for key, timing in timings.items():
            name, n = key.split("|")
            one = timings[f"{name}|1"].minimum
            peak = report.peaks["fp32"] * int(n) / report.threads
            row = {"case": str(shape), "name": name, "threads": int(n), "ratio": one / timing.minimum}
            rows.append(row | times(timing, shape.flops, peak))
        speedup[str(shape)] = timings[f"{OURS}|1"].minimum / timings[f"{OURS}|2"].minimum
    report.bar("2 threads against 1, own fp32, B >= 32", speedup, bar=1.8, aim=1.95)
    return report


def population(quick: bool) -> Measurements:
    """Eight members at once on two threads."""
    report = Measurements("population", "Eight members, two threads", threads=2, settings={"quick": quick}).start()
    rows = report.table("one update of every member", _columns(("ratio", "time / townlet", ".2fx")))
    shape = Shape(4, 3, 16, 32, P=3) if quick else Shape(32, 16, 64, 128, P=8)
    problem = draw(shape)
    candidates: dict[str, Candidate] = {
        OURS: (ours(problem), torch.float32),
        G_LOOP: (populations.module_loop(problem), torch.float32),
        G_VMAP: (populations.vmapped(problem), torch.float32),
    }
    _checked(candidates, expected(problem))
    timings = interleave({n: call for n, (call, _) in candidates.items()}, rounds=3 if quick else 15, budget=40)
    for name, timing in timings.items():
        ratio = timing.minimum / timings[OURS].minimum
        rows.append({"case": str(shape), "name": name, "ratio": ratio} | times(timing, shape.flops))
    better = min(timings[G_LOOP].minimum, timings[G_VMAP].minimum) / timings[OURS].minimum
    report.bar("against the better of (g), 2 threads", {str(shape): better}, bar=1.8, aim=2.5)
    return report
