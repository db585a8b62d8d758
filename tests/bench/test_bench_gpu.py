"""The GPU suites, as far as they can be seen without one: formulas, names, peers, and what is said where none is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from paths import ROOT

from townlet.bench import gpu, peers, results
from townlet.bench.problem import (
    TF32,
    TOLERANCE,
    Gradients,
    Problem,
    Shape,
    WrongResult,
    check,
    draw,
    expected,
    judge,
    ours,
)
from townlet.bench.timing import interleave
from townlet.support import devices

SHAPE = Shape(5, 6, 7, 9, P=2)


def test_the_parts_add_up_to_the_update() -> None:
    todo = gpu.work(SHAPE, 4)
    B, S, _, H, P, A = SHAPE
    head = P * A * H * B * (2 * 2 * (S + 1) + 4 * S)
    assert sum(part.flops for part in todo.values()) == SHAPE.flops + head
    assert all(part.bytes > 0 for part in todo.values())
    half = gpu.work(SHAPE, 2)
    assert todo[gpu.FORWARD].bytes - half[gpu.FORWARD].bytes == 2 * P * 4 * H * H * 2  # two networks' weights
    assert todo[gpu.BACKWARD].bytes - half[gpu.BACKWARD].bytes == P * 4 * H * H * 2
    assert gpu.Work(1e12, 1e9).bound(1e12, 1e12) == 1.0
    assert gpu.Work(1e9, 1e12).bound(1e12, 1e12) == 1.0


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("void townlet::cuda::forward_step<float>(townlet::cuda::UnrollForward, long)", gpu.FORWARD),
        ("void townlet::cuda::resident_backward<__nv_bfloat16, 4>(...)", gpu.BACKWARD),
        ("townlet::cuda::td_kernel(townlet::cuda::TDProblem)", gpu.TD),
        ("townlet::cuda::add_bias_kernel(float*, float const*, long, long, long, bool)", gpu.OTHER),
        ("ampere_sgemm_128x64_tn", gpu.PRODUCTS),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", gpu.PRODUCTS),
        ("void at::native::elementwise_kernel<128, 4, ...>", gpu.OTHER),
    ],
)
def test_kernels_are_told_by_name(kernel: str, part: str) -> None:
    assert gpu.part_of(kernel) == part


def test_rows_of_the_roofline() -> None:
    from suites.gpu import _parts

    spent = {gpu.FORWARD: gpu.Spent(7e-6, 1.0), gpu.OTHER: gpu.Spent(1e-6, 3.0)}
    peaks = {"fp32": 1e14, "bf16": 1e13, "bytes": 1e12}
    first, other = _parts(SHAPE, "ours", spent, peaks, False)
    todo = gpu.work(SHAPE, 4)[gpu.FORWARD]
    assert first["step"] == pytest.approx(1.0)  # seven observations
    assert first["gflops"] == pytest.approx(todo.flops / 7e-6 / 1e9)
    assert first["by"] == "memory"
    assert first["share"] == pytest.approx(todo.bytes / 1e12 / 7e-6)
    assert "bound" not in other
    assert _parts(SHAPE, "ours", spent, peaks | {"fp32": 1e9}, False)[0]["by"] == "arithmetic"


def test_a_peer_of_one_member_serves_many() -> None:
    from suites.gpu import _each_member

    problem = draw(SHAPE)
    want = expected(problem)
    assert check("peer", _each_member(peers.nn_lstm, problem)(), want) < 2e-6  # seen: 4e-7
    wrong = draw(SHAPE, seed=1)
    with pytest.raises(WrongResult):
        check("peer", _each_member(peers.nn_lstm, wrong)(), want)


class Watched(peers.Net):
    """nn.LSTM that notes whether TF32 is allowed while it runs, forward and backward."""

    seen: list[bool] = []  # noqa: RUF012

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        q = super().forward(x, h, c)
        self.seen.append(torch.backends.cudnn.allow_tf32)
        if q.requires_grad:
            q.register_hook(lambda _: self.seen.append(torch.backends.cudnn.allow_tf32))
        return q


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether TF32 was allowed in each call of a peer's network."""
    monkeypatch.setattr(Watched, "seen", [])
    monkeypatch.setattr(peers, "Net", Watched)
    return Watched.seen


@pytest.mark.parametrize("default", [True, False])
def test_float32_means_float32_to_the_peer_and_tf32_is_asked_for(default: bool, watched: list[bool]) -> None:
    problem = draw(Shape(3, 4, 5, 8))
    with peers.cudnn_tf32(default):
        for tf32 in (False, True):
            watched.clear()
            peers.nn_lstm(problem, tf32=tf32)()
            assert watched == [tf32] * 3  # the target, the online network, and its backward pass
            assert torch.backends.cudnn.allow_tf32 == default


def test_the_flag_is_restored_after_an_error() -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with peers.cudnn_tf32(True):
        with pytest.raises(RuntimeError, match="out of memory"):
            peers.nn_lstm(draw(Shape(3, 4, 5, 8)), loss=fails)()
        assert torch.backends.cudnn.allow_tf32


def test_each_precision_has_its_own_tolerance() -> None:
    want = expected(draw(SHAPE))
    for precision, allowed in TOLERANCE.items():
        within, beyond = ([v * (1 + share * allowed) for v in want] for share in (0.9, 1.1))
        assert judge("peer", lambda values=within: values, want, precision) == pytest.approx(0.9 * allowed)
        assert "is off by" in str(judge("peer", lambda values=beyond: values, want, precision))
    assert TOLERANCE[torch.float32] < TOLERANCE[TF32] < TOLERANCE[torch.bfloat16]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `gpu` suite on the CPU, with one size and the CPU's clock; its figures mean nothing."""
    from suites import gpu as suite

    like = {"fp32": 1e12, "bf16": 1e12, "bytes": 1e12, "launch": 1e-6}
    monkeypatch.setattr(suite, "TINY", (Shape(3, 4, 5, 8),))
    monkeypatch.setattr(suite, "optional", lambda name: (None, "not installed"))
    monkeypatch.setattr(devices, "resolve", lambda name: torch.device("cpu"))
    monkeypatch.setattr(gpu, "peaks", lambda device: like)
    monkeypatch.setattr(gpu, "interleave", lambda calls, rounds: interleave(calls, rounds=1, sample=1e-4))


def scaled(call: Callable[[], Gradients], by: float) -> Callable[[], Gradients]:
    return lambda: [v * by for v in call()]


@pytest.mark.usefixtures("on_cpu", "one_thread")
class TestSuite:
    def test_it_times_cudnn_in_float32_and_in_tf32(self, watched: list[bool]) -> None:
        from suites import gpu as suite

        report = suite.op(quick=True)
        names = [row["name"] for row in report.tables[0]["rows"]]
        assert {suite.CUDNN, suite.CUDNN_TF32, suite.CUDNN_BF16} <= set(names)
        assert report.notes == [f"{suite.TRITON}: not installed"]
        assert set(watched) == {False, True}

    @pytest.mark.parametrize("failure", ["wrong", "raises"])
    def test_a_peer_that_cannot_be_timed_is_a_note(self, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from suites import gpu as suite

        make = peers.nn_lstm

        def broken(problem: Problem, dtype: torch.dtype = torch.float32, *, tf32: bool = False) -> peers.Update:
            if dtype != torch.float32 or tf32:
                return make(problem, dtype, tf32=tf32)
            if failure == "wrong":
                return scaled(make(problem), 1.001)

            def fails() -> Gradients:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nmore")

            return fails

        monkeypatch.setattr(peers, "nn_lstm", broken)
        report = suite.op(quick=True)
        names = [row["name"] for row in report.tables[0]["rows"]]
        assert suite.CUDNN not in names
        assert {suite.OURS, suite.OURS_BF16, suite.CUDNN_TF32, suite.CUDNN_BF16} <= set(names)
        assert report.notes[1].startswith(f"(3, 4, 5, 8), {suite.CUDNN}: ")
        said = {"wrong": "loss is off by 1.0e-03", "raises": "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED;"}
        assert said[failure] in report.notes[1]

    def test_our_own_wrong_result_stops_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from suites import gpu as suite

        monkeypatch.setattr(suite, "ours", lambda problem: scaled(ours(problem), 1.2))
        with pytest.raises(WrongResult, match="townlet fp32: loss is off by"):
            suite.op(quick=True)


def test_a_problem_moves_with_its_gradients() -> None:
    problem = draw(SHAPE).on(torch.device("cpu"))
    assert check("ours", ours(problem)(), expected(draw(SHAPE))) < 2e-6
    assert all(w.is_leaf for w in problem.weights)
    assert not any(w.requires_grad for w in problem.target if w is not None)


def test_the_line_of_peaks_is_the_gpus() -> None:
    report = results.Measurements("gpu", "title", threads=1)
    report.device, report.peaks = "Some GPU (cuda:0)", {"fp32": 5e13, "bf16": 8e14, "bytes": 3e12, "launch": 4e-6}
    line = results.peak_line(report.to_dict())
    assert line == "Some GPU (cuda:0): torch.mm 50.0 TFLOP/s fp32, 800.0 bf16, copy 3000 GB/s, launch 4.0 us"


@pytest.mark.skipif(not devices.missing(), reason="there is a GPU")
def test_without_a_gpu_the_suites_say_so_and_fail() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "gpu", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert f"gpu: needs a GPU, but {devices.missing()}; nothing was measured" in done.stderr
    assert done.stdout == ""
