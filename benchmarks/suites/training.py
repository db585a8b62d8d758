"""The Town: the simulator alone, acting in it, the whole update, and the default training run end to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from peers import numpy_town
from peers.plain_trainer import PlainTrainer

from townlet.bench import machine, town
from townlet.bench.problem import WrongResult
from townlet.bench.results import TIMES, Measurements, times
from townlet.bench.timing import interleave
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

RATE = (("rate_median", "median steps/s", ",.0f"), ("rate", "best steps/s", ",.0f"))
WORLDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("town, presence r=2", {}),
    ("town, presence, copy=False", {"copy": False}),
    ("town, kind r=2", {"window": "kind"}),
    ("town, whole map", {"partial": False}),
    ("hamlet, kind r=1", {"level": "hamlet"}),
)


def simulator(quick: bool) -> Measurements:
    """Steps of the simulator under uniformly random actions, on one thread."""
    E = 16 if quick else 1024
    report = Measurements("simulator", f"The simulator alone, E = {E}", threads=1, settings={"quick": quick}).start()
    columns = (("case", "world", ""), ("obs", "observation", "d"), *RATE)
    rows = report.table("environment steps per second, TownVectorEnv.step", columns)
    calls: dict[str, Callable[[], None]] = {name: town.simulator(E, **args) for name, args in WORLDS}
    calls["NumPy Town"] = _numpy_town(E)
    timings = interleave(calls, rounds=3 if quick else 15, sample=0.1)
    best = {}
    for name, timing in timings.items():
        size = town.TownVectorEnv(1, **dict(WORLDS).get(name, {})).args.observation.size
        steps = E * town.STEPS
        best[name] = steps / timing.minimum / 1e6
        row = {"case": name, "obs": size, "rate_median": steps / timing.median, "rate": steps / timing.minimum}
        rows.append(row | times(timing))
    default = {WORLDS[0][0]: best[WORLDS[0][0]]}
    report.bar(f"simulator alone, 1 thread, E = {E}, M steps/s", default, bar=2.0, aim=5.0, form=".2f")
    return report


def _numpy_town(num_envs: int) -> Callable[[], None]:
    numpy_town.check(num_envs=16, steps=100)
    envs = numpy_town.NumpyTown(num_envs)
    envs.reset()
    actions = numpy_town.np.random.default_rng(0).integers(0, 6, (town.STEPS, num_envs))

    def run() -> None:
        for row in actions:
            envs.step(row)

    return run


def acting(quick: bool) -> Measurements:
    """Acting (simulator, encoder, LSTM, head, epsilon-greedy action, replay write), beside the peer of `training`."""
    import acting as parts

    threads = min(2, machine.processors())
    title = "Acting: simulator, MLP encoder 128, LSTM 128, epsilon-greedy, replay write"
    report = Measurements("acting", title, threads=threads, settings={"quick": quick}).start()
    columns = (("case", "", ""), ("envs", "E", "d"), ("threads", "threads", "d"), *RATE)
    rows = report.table("environment steps per second", columns)
    names = ("simulator", "act", "replay add", "sample 32", "whole step")
    split = (("envs", "E", "d"), ("threads", "threads", "d"), *((n, n, ".0f") for n in names))
    part_rows = report.table("townlet by part, least microseconds of all environments together", split)
    reached = {}
    for E in (8,) if quick else (64, 256, 1024):
        trainer = town.acting_trainer(E)
        parts.check(trainer)
        for n in sorted({1, threads}):
            machine.pin(n)
            found = parts.measure(E, n, rounds=3 if quick else 15)
            part_rows.append({"envs": E, "threads": n} | {r["part"]: r["minimum"] * 1e6 for r in found})
            calls = {"townlet": _steps(trainer)}
            if n == threads:
                plain = PlainTrainer(trainer)
                calls["plain PyTorch, NumPy Town"] = _steps(plain)
            timings = interleave(calls, rounds=3 if quick else 9, sample=0.1, budget=10)
            for name, timing in timings.items():
                steps = E * town.STEPS
                row = {"case": name, "envs": E, "threads": n, "rate": steps / timing.minimum}
                rows.append(row | {"rate_median": steps / timing.median} | times(timing))
                if name == "townlet" and n == threads:
                    reached[f"E = {E}"] = steps / timing.minimum / 1e3
    case = {k: v for k, v in reached.items() if quick or k == "E = 256"}
    report.bar(f"acting end to end, {threads} threads, k steps/s", case, bar=100.0, aim=250.0, form=".0f")
    return report


def _steps(trainer: Trainer | PlainTrainer) -> Callable[[], None]:
    def run() -> None:
        for _ in range(town.STEPS):
            trainer.act_step()

    return run


def update(quick: bool) -> Measurements:
    """The learner's whole update beside plain PyTorch's, and its parts, as benchmarks/update.py measures them."""
    import update as whole

    report = Measurements(
        "update", "The whole learner update, one thread", threads=1, settings={"quick": quick}
    ).start()
    columns = (
        ("case", "", ""),
        ("name", "", ""),
        *TIMES,
        ("ratio", "plain / townlet", ".2fx"),
        ("at_peak", "every FLOP at peak, ms", ".2f"),
        ("bound", "plain / that", ".2fx"),
        ("outside", "outside operator and encoders", ".0%"),
    )
    rows = report.table("spatial: B, S = 16, 8, D = 224, H = 256; default: what `townlet train` does", columns)
    part_rows: list[dict[str, Any]] = []
    ratios, outside = {}, {}
    for case in whole.CASES[:1] if quick else whole.CASES:
        try:
            found = whole.measure(case, rounds=2 if quick else 40)
        except SystemExit as error:  # the script's own check failed
            raise WrongResult(str(error)) from None
        for side, name in (("ours", "townlet"), ("peer", "plain PyTorch")):
            row = {"case": case.name, "name": name, "median": found["median"][side], "minimum": found["min"][side]}
            if side == "ours":
                at_peak = found["flops"] / report.peaks["fp32"] * 1e3
                bound = found["min"]["peer"] / at_peak
                row |= {"ratio": found["ratio"], "outside": found["outside"], "at_peak": at_peak, "bound": bound}
            rows.append(row)
        part_rows.append({"case": case.name, **found["parts"]})
        if case.name.startswith("spatial"):
            ratios[case.name], outside[case.name] = found["ratio"], found["outside"]
    parts = [("case", "", ""), *((name, name, ".3f") for name in part_rows[0] if name != "case")]
    report.table("townlet by part, median ms", parts).extend(part_rows)
    report.bar("whole update at 16x8, D=224, H=256, against plain PyTorch", ratios, bar=2.0, aim=3.0)
    what = "share of it outside the operator and the encoders"
    report.bar(what, outside, bar=0.25, aim=0.15, form=".0%", most=True)
    return report


def training(quick: bool) -> Measurements:
    """Stretches of the default training run, in turns with the same run in plain PyTorch and NumPy."""
    threads = min(2, machine.processors())
    report = Measurements(
        "training", "Default `townlet train`, end to end", threads=threads, settings={"quick": quick}
    ).start()
    window, rounds = (0.3, 2) if quick else (12.0, 5)
    columns = (("case", "", ""), *RATE, ("updates", "updates in all", ",d"), ("ratio", "of plain", ".2fx"))
    rows = report.table(f"environment steps per second over {rounds} windows of {window:g} s each, in turns", columns)
    tiny: dict[str, Any] = {"num_envs": 16, "capacity": 20_000, "learning_starts": 700} if quick else {}
    config = Config(**tiny)
    numpy_town.check(num_envs=16, steps=200, **config.stages[0][1])
    ours = Trainer(config)
    plain = PlainTrainer(ours)
    _same_q(ours, plain)
    runs: dict[str, Trainer | PlainTrainer] = {"townlet": ours, "plain PyTorch, NumPy Town": plain}
    for run in runs.values():  # up to where updates have become due
        while run.env_steps < 2 * config.learning_starts:
            run.act_step()
            run.learn()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds):
        for name in list(runs)[:: 1 if r % 2 == 0 else -1]:
            rates[name].append(_rate(runs[name], window))
    best = {name: max(values) for name, values in rates.items()}
    for name, run in runs.items():
        row = {"case": name, "rate": best[name], "rate_median": sorted(rates[name])[rounds // 2]}
        rows.append(row | {"updates": run.learner.updates, "ratio": best[name] / best["plain PyTorch, NumPy Town"]})
    report.bar("default training against plain PyTorch", {"best window": rows[0]["ratio"]}, bar=3.0, aim=5.0)
    return report


def _rate(run: Trainer | PlainTrainer, seconds: float) -> float:
    """Environment steps per second, measured for about ``seconds``."""
    begun, before = time.perf_counter(), run.env_steps
    while (took := time.perf_counter() - begun) < seconds:
        run.act_step()
        run.learn()
    return (run.env_steps - before) / took


def _same_q(ours: Trainer, plain: PlainTrainer) -> None:
    """Make sure that both networks give the same Q-values for the peer's first observations.

    Raises:
        WrongResult: they do not.
    """
    P, E = 1, ours.config.num_envs
    h, c = torch.zeros(2, P, E, ours.config.hidden_size)
    with torch.no_grad():
        features = ours.network.encode(ours.population.online, plain.obs.unsqueeze(0))
        weights = ours.network.recurrent(ours.population.online)
        h, _ = town.reference.lstm_step(features, h, c, weights.w_ih, weights.w_hh, weights.bias)
        want = ours.network.q_values(ours.population.online, h)[0]
    error = float((plain.q_values() - want).abs().max())
    plain.h.zero_()
    plain.c.zero_()
    if not error < 1e-5:
        raise WrongResult(f"plain trainer: Q-values differ by {error:.1e}")
