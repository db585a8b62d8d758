"""How the operator's cost grows with S, H, P and threads, also where the threads have too few items to share."""

from __future__ import annotations

from collections.abc import Iterable

from townlet.bench import machine
from townlet.bench.problem import Shape, check, draw, expected, ours
from townlet.bench.results import Measurements, times
from townlet.bench.timing import interleave

COLUMNS = (
    ("case", "B, S, D, H", ""),
    ("median", "median ms", ".3f"),
    ("minimum", "min ms", ".3f"),
    ("gflops", "GFLOP/s", ".0f"),
    ("share", "of peak", ".0%"),
    ("deviation", "cost / work, against the first", "+.1%"),
)


def scaling(quick: bool) -> Measurements:
    """The cost by S, H and P on one thread, and by threads."""
    report = Measurements("scaling", "Scaling of the operator", threads=1, settings={"quick": quick}).start()
    B = 8 if quick else 32
    D, H = (16, 32) if quick else (128, 128)
    steps = (4, 8) if quick else (16, 32, 64, 96, 128)
    _linear(report, "S, one thread", [Shape(B, S, D, H) for S in steps], "cost over S linear")
    units = (32, 64) if quick else (64, 128, 192, 256, 384, 512)
    _linear(report, "H (D = H), one thread", [Shape(B, 4 if quick else 16, H, H) for H in units], None)
    members = (1, 2) if quick else (1, 2, 4, 8, 16, 32)
    base = Shape(4, 3, 16, 32) if quick else Shape(16, 8, 64, 128)
    _linear(report, "P, one thread", [base._replace(P=P) for P in members], "cost over P linear")
    report.peaks_again()
    _threads(report, quick)
    return report


def _linear(report: Measurements, what: str, shapes: Iterable[Shape], bar: str | None) -> None:
    rows = report.table(f"Over {what}", COLUMNS)
    calls, shape_of = {}, {}
    for shape in shapes:
        problem = draw(shape)
        update = ours(problem)
        check(str(shape), update(), expected(problem))
        calls[str(shape)], shape_of[str(shape)] = update, shape
    timings = interleave(calls, rounds=9, budget=25)
    costs = {case: t.minimum / shape_of[case].flops for case, t in timings.items()}
    first = next(iter(costs.values()))
    for case, timing in timings.items():
        row = {"case": case, "deviation": costs[case] / first - 1}
        rows.append(row | times(timing, shape_of[case].flops, report.peaks["fp32"]))
    if bar is not None:
        off = {case: abs(cost / first - 1) for case, cost in costs.items()}
        report.bar(bar, off, bar=0.15, aim=0.05, form=".1%", most=True)


def _threads(report: Measurements, quick: bool) -> None:
    columns = (
        ("case", "P, B, S, D, H", ""),
        ("threads", "threads", "d"),
        *COLUMNS[1:4],
        ("speedup", "1 thread / this", ".2fx"),
    )
    rows = report.table("Over threads: an item of work is 8 to 16 sequences of a member", columns)
    cases = [Shape(8, 16, 64, 128), Shape(32, 16, 64, 128), Shape(64, 32, 128, 256), Shape(16, 8, 64, 128, P=8)]
    if quick:
        cases = [Shape(32, 3, 16, 32)]
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= machine.processors()]
    for shape in cases:
        problem = draw(shape)
        update = ours(problem)
        check(str(shape), update(), expected(problem))
        one = 0.0
        for n in counts:  # not in turns, which would wake the pool of threads and put it to sleep all the time
            machine.pin(n)
            timing = interleave({"": update}, rounds=9, budget=5)[""]
            one = one or timing.minimum
            row = {"case": str(shape), "threads": n, "speedup": one / timing.minimum}
            rows.append(row | times(timing, shape.flops))
    machine.pin(report.threads)
