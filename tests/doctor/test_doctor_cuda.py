"""`townlet doctor --device cuda`, as far as it can be seen without a GPU: its checks on the CPU, and what it says."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_emu import emu

from townlet import _build, _native, cli, doctor, ops
from townlet.bench import gpu, peers
from townlet.bench.problem import WrongResult
from townlet.bench.timing import interleave
from townlet.doctor import checks
from townlet.doctor import cuda as doctor_cuda
from townlet.ops import TDOutput, backend
from townlet.support import devices

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = doctor.CPU


def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """What is checked on a GPU, run on the CPU with one size: name -> whether it is within what is allowed."""
    monkeypatch.setattr(doctor_cuda, "HIDDEN", (64,))
    updates = doctor_cuda.update_checks
    monkeypatch.setattr(doctor_cuda, "update_checks", lambda device, record: updates(device, False))
    found = {name: error <= allowed for name, error, allowed in doctor_cuda.checks(CPU)}
    monkeypatch.undo()
    return found


def test_everything_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(monkeypatch)
    assert len(found) == 5
    assert all(found.values()), found


def test_a_wrong_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.td_unroll

    def wrong(*arguments: Any, **named: Any) -> TDOutput:
        out = right(*arguments, **named)
        return out._replace(loss=out.loss * 1.1)

    monkeypatch.setattr(ops, "td_unroll", wrong)
    found = results(monkeypatch)
    assert not any(good for name, good in found.items() if "td_unroll" in name), found


def test_a_wrong_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    learner = doctor_cuda.learner

    def other(*arguments: Any) -> Any:
        made.append(learner(*arguments))
        if len(made) == 2:  # the one in the GPU's place
            made[-1].tau = 0.5
        return made[-1]

    monkeypatch.setattr(doctor_cuda, "learner", other)
    ((_, error, allowed),) = doctor_cuda.update_checks(CPU, record=False)
    assert error > allowed


def test_kernels_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "CUDA", True)
    doctor_cuda.need_kernels()
    monkeypatch.setattr(_native, "CUDA", False)
    monkeypatch.setattr(_native, "WHY_NOT_CUDA", "townlet was built without nvcc")
    with pytest.raises(ValueError, match="no CUDA kernels to check: townlet was built without nvcc"):
        doctor_cuda.need_kernels()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short benchmark on the CPU, with one size and the CPU's clock; its figures mean nothing."""
    monkeypatch.setattr(doctor_cuda, "MEASURED", ((3, 4, 5, 8),))
    monkeypatch.setattr(gpu, "peaks", lambda device: {"fp32": 1e12, "bf16": 1e12})
    monkeypatch.setattr(gpu, "interleave", lambda calls, rounds, budget: interleave(calls, rounds=1, sample=1e-4))


def measured() -> tuple[dict[str, str], list[str]]:
    """The short benchmark's rows, by what stands beside their size; the lines below the table."""
    lines: list[str] = []
    doctor_cuda.measure(CPU, lines.append)
    table, *notes = lines[2:]
    rows = [line.removeprefix("(3, 4, 5, 8)") for line in table.splitlines() if line.startswith("(3, 4, 5, 8)")]
    return {name: row for row in rows for name in KINDS if row.strip().startswith(name)}, notes


KINDS = ("float32", "nn.LSTM in TF32", "bfloat16")


@pytest.mark.usefixtures("on_cpu")
class TestShortBenchmark:
    def test_tf32_has_a_row_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[bool] = []
        loss = peers.td_loss

        def watched(*arguments: Any) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return loss(*arguments)

        monkeypatch.setattr(peers, "td_loss", watched)
        with peers.cudnn_tf32(True):
            rows, notes = measured()
        assert tuple(rows) == KINDS
        assert all(row.endswith("x") for row in rows.values())
        assert notes == []
        # each peer is checked once and timed; in float32 never with TF32, in TF32 always with it
        assert seen[:2] == [False, True]

    def test_a_wrong_peer_is_a_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make = peers.nn_lstm

        def off(problem: Any, dtype: torch.dtype = torch.float32, *, tf32: bool = False) -> peers.Update:
            call = make(problem, dtype, tf32=tf32)
            by = 1.0 if dtype == torch.bfloat16 else 1.001  # within what TF32 is allowed, and not float32
            return lambda: [v * by for v in call()]

        monkeypatch.setattr(peers, "nn_lstm", off)
        rows, (note,) = measured()
        assert tuple(rows) == KINDS
        assert [row.endswith("x") for row in rows.values()] == [False, True, True]
        assert note.startswith("((3, 4, 5, 8), nn.LSTM in float32: loss is off by 1.0e-03")

    def test_our_own_wrong_result_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = ops.td_unroll

        def wrong(*arguments: Any, **named: Any) -> TDOutput:
            out = right(*arguments, **named)
            return out._replace(loss=out.loss * 1.1)

        monkeypatch.setattr(ops, "td_unroll", wrong)
        with pytest.raises(WrongResult, match="townlet, float32: loss is off by"):
            measured()


@pytest.mark.skipif(not devices.missing(), reason="there is a GPU")
def test_without_a_gpu_it_describes_the_build_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cuda"]) == 2
    text = capsys.readouterr()
    assert "cuda kernels" in text.out
    assert "ok" not in text.out.split("GPU  ")[1]  # nothing counts as checked
    assert f"device is 'cuda', but {devices.missing()}; expected cpu" in text.err


@pytest.mark.cuda
@pytest.mark.skipif(bool(devices.missing()), reason=f"no GPU: {devices.missing()}")
def test_on_a_gpu_it_checks_and_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cuda"]) == 0
    text = capsys.readouterr().out
    assert "recorded as a CUDA graph" in text
    assert "nn.LSTM / this" in text


def test_gpu_tensors_without_kernels_are_announced_and_those_without_a_kernel_are_not() -> None:
    """The operators with a CUDA kernel warn where it is missing; the twins of the others are their form there."""
    like = torch.empty(1, device="meta")

    class Fake:
        device, dtype = torch.device("cuda"), like.dtype

    backend.announced.clear()
    if not _native.CUDA:
        with pytest.warns(
            UserWarning, match=r"no compiled td_unroll takes float32 tensors on cuda \(no CUDA kernels: "
        ):
            assert not backend.kernel_fits("td_unroll", Fake())  # type: ignore[arg-type]
    for name in ("act", "adam_step", "spatial_encode"):
        assert not backend.kernel_fits(name, Fake())  # type: ignore[arg-type]
    assert len(backend.announced) == (0 if _native.CUDA else 1)


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host shim in the place of the CUDA kernels."""
    monkeypatch.setattr(_native, "CUDA", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.townlet, "unroll_plan", emu.unroll_plan)
    emu.set_gpu(90, 132)
    yield
    emu.set_gpu(0, 0)


@pytest.mark.usefixtures("shim")
def test_it_says_which_kernels_a_gpu_runs() -> None:
    said = _build.cuda_kernel_in_use()
    assert said.startswith("B = 64, S = 80, forward, H = 128 fp32: resident, cluster of")
    assert "H = 256 bf16: resident, cluster of" in said
    assert "H = 512 bf16: resident, cluster of 16" in said
    emu.set_clusters(16, 0)
    assert "H = 512 bf16: resident, cooperative grid" in _build.cuda_kernel_in_use()
    emu.set_gpu(75, 40)
    assert _build.plan_in_words("cuda:1", 256, "fp32") == "a launch per step"


@pytest.mark.usefixtures("shim")
def test_it_says_which_form_is_asked_for_and_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "cluster:8")
    said = _build.cuda_kernel_in_use()
    assert said.startswith("TOWNLET_CUDA_UNROLL asks for cluster:8: B = 64")
    assert "H = 128 fp32: resident, cluster of 8 blocks, 16 rows;" in said
    assert "H = 512 bf16: TOWNLET_CUDA_UNROLL is 'cluster:8'; expected a form that this GPU can launch" in said


GPU = torch.device("cuda:0")


@pytest.mark.usefixtures("shim")
def test_a_form_is_refused_where_it_does_not_fit_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    emu.set_clusters(16, 0)
    assert _build.form_refused(GPU, 2, 9, 12, 512) == ""  # none is asked for
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "cluster:8")
    assert _build.form_refused(GPU, 2, 9, 12, 256, chains=2) == ""
    assert _build.form_refused(CPU, 2, 9, 12, 512) == ""  # the variable does not concern it
    why = _build.form_refused(GPU, 2, 9, 12, 512)
    assert why.startswith("TOWNLET_CUDA_UNROLL is 'cluster:8'; expected a form that this GPU can launch; it needs ")
    assert "\n" not in why
    # 6 groups of 22 blocks are one wave on 132 SMs, and two networks need twice as many
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "grid:22")
    assert _build.form_refused(GPU, 6, 9, 12, 330, chains=1) == ""
    assert "it has 264" in _build.form_refused(GPU, 6, 9, 12, 330, chains=2)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, shim: None) -> None:
    """The checks run on the CPU, and ask of each size whether the form fits a GPU."""
    refused = _build.form_refused

    def asked(where: torch.device, *sizes: int, **more: Any) -> str:
        return refused(GPU, *sizes, **more)

    monkeypatch.setattr(_build, "_gpu", lambda: "the host shim")
    monkeypatch.setattr(checks, "form_refused", asked)
    monkeypatch.setattr(doctor_cuda, "form_refused", asked)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_a_form_does_not_fit_is_named_and_the_rest_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_cuda, "HIDDEN", (64, 512))
    updates, all_on_cpu = doctor_cuda.update_checks, checks.operator_checks
    monkeypatch.setattr(doctor_cuda, "update_checks", lambda device, record: updates(device, False))
    both = lambda device: itertools.chain(all_on_cpu(device), doctor_cuda.checks(device))  # noqa: E731
    monkeypatch.setattr(importlib.import_module("townlet.doctor.examine"), "operator_checks", both)
    assert cli.main(["doctor"]) == 0  # the control: without the variable
    text = capsys.readouterr().out
    assert "NOT RUN" not in text
    ran = text.count(" ok\n")

    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "cluster:8")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert text.count("NOT RUN: TOWNLET_CUDA_UNROLL is 'cluster:8'; expected a form") == 2
    assert text.count(" ok\n") == ran - 4
    assert "all operators agree" not in text
    last = text.splitlines()[-1]
    assert last.startswith("NOT RUN: td_unroll, H = 512, td_unroll, H = 512, bfloat16; the form that TOWNLET_CUDA")

    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "grid:2")
    emu.set_gpu(90, 1)  # not one group fits, at any size
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert " ok\n" not in text
    assert "lstm_unroll and lstm_step" in text
    assert "weights after 6 updates" in text
