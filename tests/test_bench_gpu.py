"""The GPU suites, as far as they can be seen without one: formulas, names, peers, and what is said where none is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from townlet import device as devices
from townlet.bench import gpu, peers, results
from townlet.bench.problem import Shape, WrongResult, check, draw, expected, ours

ROOT = Path(__file__).resolve().parents[1]
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


def test_a_problem_moves_with_its_gradients() -> None:
    problem = draw(SHAPE).on(torch.device("cpu"))
    assert check("ours", ours(problem)(), expected(draw(SHAPE))) < 2e-6
    assert all(w.is_leaf for w in problem.weights)
    assert not any(w.requires_grad for w in problem.target if w is not None)


def test_the_line_of_peaks_is_the_gpus() -> None:
    report = results.Report("gpu", "title", threads=1)
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
