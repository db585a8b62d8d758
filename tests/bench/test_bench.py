"""`townlet bench` and the harness behind it: results are checked before they are timed, and files are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT

from townlet import cli, ops
from townlet.bench import machine, peers, results, short, town
from townlet.bench.problem import Shape, WrongResult, check, draw, expected, ours
from townlet.bench.timing import Timing, interleave
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

TINY = Shape(3, 4, 5, 8)


@pytest.fixture(autouse=True)
def _unpinned():
    """Benchmarks pin the process; the tests after them want it back as it was."""
    threads = torch.get_num_threads()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    torch.set_num_threads(threads)
    if cpus is not None:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), cpus)


@pytest.fixture
def small(monkeypatch):
    """Sizes that take no time."""
    monkeypatch.setattr(short, "SHAPES", (TINY,))
    monkeypatch.setattr(short, "QUICK", (TINY,))
    monkeypatch.setattr(short, "SIMULATED", 4)
    monkeypatch.setattr(short, "ACTING", 4)
    monkeypatch.setattr(machine, "peaks", lambda threads: {"fp32": 1e11, "bf16": 2e11, "mm": 8e10})


def wrong_loss(online, target, batch, spec):
    """The operator with 1% too much loss (and gradient)."""
    out = ops.td_unroll(online, target, batch, spec)
    return out._replace(loss=out.loss * 1.01)


def no_bootstrap(online, target, batch, spec):
    """The operator where every transition ends its episode."""
    return ops.td_unroll(online, target, batch._replace(terminated=torch.ones_like(batch.terminated)), spec)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_bench_prints_a_table_and_writes_json(small, tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "--quick", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for word in ("townlet", "torch.nn.LSTM", "GFLOP/s", "of peak", "simulator", "acting", str(TINY)):
        assert word in printed
    done = json.loads(file.read_text())
    assert done == results.read(file)
    assert done["threads"] == 1
    assert done["machine"]["isa"] == ops.ISA
    rows = {(row["case"], row.get("name")): row for table in done["tables"] for row in table["rows"]}
    mine, peer = rows[str(TINY), "townlet"], rows[str(TINY), "torch.nn.LSTM"]
    assert mine["ratio"] == pytest.approx(peer["minimum"] / mine["minimum"])
    assert mine["gflops"] == pytest.approx(TINY.flops / mine["minimum"] / 1e6)
    assert mine["minimum"] <= mine["median"]
    assert rows["simulator", None]["rate"] >= rows["simulator", None]["rate_median"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("broken", [wrong_loss, no_bootstrap])
def test_a_wrong_result_is_not_timed(small, tmp_path, broken):
    printed: list[str] = []
    file = tmp_path / "bench.json"
    with pytest.raises(WrongResult, match=r"townlet: .* is off by .*; not timed"):
        short.run(printed.append, quick=True, file=str(file), td_unroll=broken)
    assert printed == []
    assert not file.exists()
    short.run(printed.append, quick=True, file=str(file))  # the control: the right operator passes
    assert file.exists()


def test_the_command_says_wrong_result_and_fails(small, monkeypatch, capsys):
    monkeypatch.setattr(short.run, "__kwdefaults__", {**short.run.__kwdefaults__, "td_unroll": wrong_loss})
    assert cli.main(["bench", "--quick"]) == 1
    assert "WRONG RESULT: townlet: loss is off by" in capsys.readouterr().err


def test_bad_arguments_name_themselves(small, tmp_path, capsys):
    many = machine.processors() + 1
    assert cli.main(["bench", "--threads", str(many)]) == 2
    assert f"threads is {many}; expected 1..{many - 1}" in capsys.readouterr().err
    assert cli.main(["bench", "--json", str(tmp_path / "nowhere" / "f.json")]) == 2
    assert "in a folder that does not exist; expected" in capsys.readouterr().err


# ---- what is timed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [peers.nn_lstm, peers.step_loop], ids=lambda f: f.__name__)
def test_peers_compute_the_same_update(make):
    problem = draw(Shape(5, 6, 7, 9))
    want = expected(problem)
    assert check("peer", make(problem)(), want) < 2e-6  # seen: 3e-7
    assert check("ours", ours(problem)(), want) < 2e-6  # seen: 4e-7
    other = expected(draw(Shape(5, 6, 7, 9), seed=1))
    with pytest.raises(WrongResult, match="peer: loss is off"):
        check("peer", make(problem)(), other)


@pytest.mark.parametrize("make", [lambda p: peers.nn_lstm(p, torch.bfloat16), peers.nn_lstm_autocast, ours])
def test_bfloat16_has_a_tolerance_of_its_own(make):
    shape = Shape(5, 6, 7, 9)
    want = expected(draw(shape))
    got = make(draw(shape, compute_dtype=torch.bfloat16))()
    error = check("bf16", got, want, torch.bfloat16)
    assert error < 2e-2  # seen: 7e-3
    with pytest.raises(WrongResult):
        check("bf16", got, want, torch.float32)


def test_resets_reach_the_update():
    shape = Shape(5, 12, 7, 9)
    cut = draw(shape, resets=0.2)
    assert cut.batch.reset.any()
    assert torch.equal(cut.batch.terminated, cut.batch.reset[:, :, 1:])
    check("ours", ours(cut)(), expected(cut))
    with pytest.raises(WrongResult):
        check("ours", ours(cut)(), expected(draw(shape)))


def test_flops_are_the_formula_s():
    B, S, D, H = TINY[:4]
    forward, back = 2 * 8 * H * (D + H) * B * (S + 1), 8 * H * H * B * S + 8 * H * (D + H) * B * S
    assert TINY.flops == forward + back
    assert TINY._replace(P=3).flops == 3 * TINY.flops


def test_acting_is_held_against_the_twin(monkeypatch):
    town.acting(3)()
    right = town.reference.lstm_step
    monkeypatch.setattr(town.reference, "lstm_step", lambda *a: tuple(v * 1.001 for v in right(*a)))
    with pytest.raises(WrongResult, match="acting: h is off by"):
        town.acting(3)


def test_simulator_is_held_against_itself_alone(monkeypatch):
    town.simulator(3)()
    step = town.TownVectorEnv.step

    def leaky(self, actions):
        return step(self, actions[::-1].copy())  # neighbours' actions

    monkeypatch.setattr(town.TownVectorEnv, "step", leaky)
    with pytest.raises(WrongResult, match="simulator: environment 2 of 3 differs"):
        town.simulator(3)


# ---- the harness ----------------------------------------------------------------------------------------------------


def test_interleave_takes_turns():
    order: list[str] = []

    def take(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    timings = interleave({"a": take("a", 0.003), "b": take("b", 0.001)}, rounds=4, sample=0)
    assert {n: t.samples for n, t in timings.items()} == {"a": 4, "b": 4}
    assert timings["a"].minimum > timings["b"].minimum
    assert "".join(order[6:]) == "aabbbbaaaabbbbaa"  # one to warm up and one timed; a begins, then b


def test_interleave_keeps_its_budget():
    calls = {"a": lambda: time.sleep(0.06)}
    assert interleave(calls, rounds=50, budget=0.3)["a"].samples < 6
    assert interleave(calls, rounds=50, budget=0)["a"].samples == 3


def test_peaks_are_of_this_machine():
    found = machine.peaks(1, seconds=0.02)
    assert found["fp32"] > 1e9
    assert found["mm"] > 1e8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert (found["bf16"] > 0) == ("avx512_bf16" in flags)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pinning is Linux's")
def test_pinning_moves_every_thread():
    torch.set_num_threads(machine.processors())
    torch.mm(torch.ones(600, 600), torch.ones(600, 600))  # wakes the pool
    chosen = machine.pin(1)
    assert len(chosen) == torch.get_num_threads() == 1
    assert {frozenset(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")} == {frozenset(chosen)}


def test_bars_keep_the_worst_case():
    report = results.Measurements("x", "X", threads=1)
    report.bar("speed", {"p": 2.0, "q": 1.5}, bar=1.4, aim=1.8)
    report.bar("error", {"p": 0.1, "q": 0.2}, bar=0.15, aim=0.05, form=".0%", most=True)
    report.bar("nothing", {}, bar=1.0, aim=None)
    cells = results.bar_cells(report.bars)
    assert cells[1:] == [["speed", "1.50x", "q", "1.40x", "1.80x", "yes"], ["error", "20%", "q", "15%", "5%", "NO"]]
    assert results.markdown(cells[:2]).splitlines()[2] == "| speed | 1.50x | q | 1.40x | 1.80x | yes |"


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x.json"
    results.write(path, {"version": results.VERSION, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        results.write(path, {"version": results.VERSION, "a": float("nan")})
    assert results.read(path) == {"version": results.VERSION, "a": 1}
    path.write_text('{"version": 1, "a"')
    assert results.read(path) is None
    assert results.read(tmp_path / "none.json") is None


def test_share_and_rate_come_from_the_minimum():
    row = results.times(Timing(0.2, 0.1, 5), flops=5e9, peak=100e9)
    assert row == {"median": 200.0, "minimum": 100.0, "samples": 5, "gflops": 50.0, "share": 0.5}


# ---- benchmarks/run.py ----------------------------------------------------------------------------------------------


def test_a_suite_runs_resumes_and_is_refused_by_the_readme(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments, "--out", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})

    first = run("resets", "--quick")
    assert first.returncode == 0, first.stderr
    assert "2% resets in the stream against none" in first.stdout
    done = results.read(tmp_path / "resets.json")
    assert done is not None
    assert done["suite"] == "resets"
    names = {row["name"] for row in done["tables"][0]["rows"]}
    assert any("(e) TorchRL" in text for text in [*names, *done["notes"]])  # measured, or said to be missing
    assert "taken from" in run("resets", "--quick", "--resume").stdout
    assert "figures mean nothing" in run("--markdown").stderr
    assert "expected some of" in run("nonsense").stderr


def test_numpy_town_is_the_town(monkeypatch):
    from peers import numpy_town

    hamlet = {"level": "hamlet", "depletion": 1.5, "size": 5, "reward": "wellbeing", "random_start": 0.5, "knots": 8}
    assert numpy_town.check(16, 200, **hamlet) > 20
    assert numpy_town.check(16, 200, depletion=3.0, radius=1, window="kind") > 20
    monkeypatch.setattr(numpy_town.NumpyTown, "_interact", lambda self, e: None)
    with pytest.raises(WrongResult, match="NumpyTown: obs differs from the simulator's at step"):
        numpy_town.check(16, 200, **hamlet)


def test_the_plain_trainer_acts_as_ours_and_learns():
    from peers.plain_trainer import PlainTrainer
    from suites import training

    sizes = {"num_envs": 8, "capacity": 1000, "seq_len": 8, "burn_in": 2, "batch_size": 4, "learning_starts": 100}
    trainer = Trainer(Config(**sizes))
    plain = PlainTrainer(trainer)
    training._same_q(trainer, plain)
    before = plain.net.lstm.weight_hh_l0.detach().clone()
    for _ in range(300):
        plain.act_step()
        plain.learn()
    assert plain.learner.updates == int((300 * 8 - 100) * trainer.config.replay_ratio / (4 * 6))
    assert not torch.equal(before, plain.net.lstm.weight_hh_l0)
    sample = plain.replay.sample(64)
    cut = ~sample.mask[0]
    assert cut.any()
    ended = sample.terminated[0].cumsum(1)
    assert not sample.mask[0][:, 1:][ended[:, :-1] > 0].any()  # nothing counts after a death
    with torch.no_grad():
        plain.net.val.bias += 0.01
    with pytest.raises(WrongResult, match="plain trainer: Q-values differ"):
        training._same_q(trainer, plain)
