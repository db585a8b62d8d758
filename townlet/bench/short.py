"""``townlet bench``: the speed of the operator, of acting and of the simulator, in under a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .. import ops
from . import peers, results, town
from .problem import Shape, check, draw, expected, ours
from .timing import interleave

SHAPES = (Shape(16, 8, 64, 128), Shape(16, 8, 256, 256), Shape(32, 16, 64, 128), Shape(64, 32, 128, 256))
QUICK = SHAPES[:1]
SIMULATED, ACTING = 1024, 256  # environments


def run(
    out: Callable[[str], None],
    *,
    quick: bool = False,
    threads: int = 1,
    file: str | None = None,
    td_unroll: Callable[..., ops.TDOutput] = ops.td_unroll,
) -> results.Measurements:
    """Measure this machine and print the figures.

    Args:
        out: receives the lines.
        quick: whether to measure fewer shapes, less often.
        threads: the threads of the operator and of acting; the simulator has one.
        file: where to write the figures as JSON; None writes nothing.
        td_unroll: the operator; tests pass broken ones.

    Returns:
        What was measured.

    Raises:
        ValueError: there are fewer processors than threads, or the folder of ``file`` does not exist.
        WrongResult: a result is wrong (also a ValueError). Nothing wrong is timed.
    """
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise ValueError(f"--json is {file}, in a folder that does not exist; expected an existing folder")
    title = "Townlet on this machine"
    report = results.Measurements("bench", title, threads=threads, settings={"quick": quick}).start()
    _operator(report, quick, td_unroll)
    _worlds(report, quick)
    report.peaks_again()
    done = report.to_dict()
    facts = done["machine"]
    out(f"{facts['cpu']}, {facts['processors']} processors, kernels {facts['isa']}, torch {facts['torch']}")
    out(results.peak_line(done))
    for table in report.tables:
        out("")
        out(table["title"])
        out(results.text(results.grid(table)))
    if file is not None:
        results.write(Path(file), done)
    return report


def _operator(report: results.Measurements, quick: bool, td_unroll: Callable[..., ops.TDOutput]) -> None:
    columns = [
        ("case", "B, S, D, H", ""),
        ("name", "", ""),
        *results.TIMES,
        ("gflops", "GFLOP/s", ".0f"),
        ("share", "of peak", ".0%"),
        ("ratio", "nn.LSTM / this", ".2fx"),
    ]
    rows = report.table("one update: forward, TD target, loss, gradients of all weights", columns)
    for shape in QUICK if quick else SHAPES:
        problem, half = draw(shape), draw(shape, compute_dtype=torch.bfloat16)
        candidates = {
            "townlet": (ours(problem, td_unroll), torch.float32),
            "torch.nn.LSTM": (peers.nn_lstm(problem), torch.float32),
        }
        if report.peaks["bf16"]:
            candidates["townlet bf16"] = (ours(half, td_unroll), torch.bfloat16)
            candidates["torch.nn.LSTM bf16"] = (peers.nn_lstm(half, torch.bfloat16), torch.bfloat16)
        want = expected(problem)
        for name, (call, dtype) in candidates.items():
            check(name, call(), want, dtype)
        timings = interleave({n: call for n, (call, _) in candidates.items()}, rounds=5 if quick else 9, budget=8)
        for name, timing in timings.items():
            bf16 = name.endswith("bf16")
            peer = timings["torch.nn.LSTM bf16" if bf16 else "torch.nn.LSTM"].minimum
            row = {"case": str(shape), "name": name, "ratio": peer / timing.minimum}
            rows.append(row | results.times(timing, shape.flops, report.peaks["bf16" if bf16 else "fp32"]))


def _worlds(report: results.Measurements, quick: bool) -> None:
    columns = [
        ("case", "Town, environment steps per second", ""),
        ("envs", "environments", "d"),
        ("rate_median", "median", ",.0f"),
        ("rate", "best", ",.0f"),
    ]
    rows = report.table("acting: simulator, MLP 128, LSTM 128, action, replay write", columns)
    calls = {
        "simulator": (town.simulator(SIMULATED), SIMULATED),
        "acting": (town.acting(ACTING), ACTING),
    }
    timings = interleave({n: call for n, (call, _) in calls.items()}, rounds=5 if quick else 15, budget=10)
    for name, timing in timings.items():
        steps = calls[name][1] * town.STEPS
        row = {"case": name, "envs": calls[name][1], "rate_median": steps / timing.median}
        rows.append(row | {"rate": steps / timing.minimum} | results.times(timing))
