"""`townlet doctor --device cuda`, as far as it can be seen without a GPU: its checks on the CPU, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_emu import emu

from townlet import _native, cli, doctor, doctor_cuda, ops
from townlet import device as devices
from townlet.params import TDOutput

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

    ops._announced.clear()
    if not _native.CUDA:
        with pytest.warns(
            UserWarning, match=r"no compiled td_unroll takes float32 tensors on cuda \(no CUDA kernels: "
        ):
            assert not ops._kernel_fits("td_unroll", Fake())  # type: ignore[arg-type]
    for name in ("act", "adam_step", "spatial_encode"):
        assert not ops._kernel_fits(name, Fake())  # type: ignore[arg-type]
    assert len(ops._announced) == (0 if _native.CUDA else 1)


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
    said = doctor.cuda_kernel_in_use()
    assert said.startswith("B = 64, S = 80, forward, H = 128 fp32: resident, cluster of")
    assert "H = 256 bf16: resident, cluster of" in said
    assert "H = 512 bf16: resident, cluster of 16" in said
    emu.set_clusters(16, 0)
    assert "H = 512 bf16: resident, cooperative grid" in doctor.cuda_kernel_in_use()
    emu.set_gpu(75, 40)
    assert doctor.plan_in_words("cuda:1", 256, "fp32") == "a launch per step"


@pytest.mark.usefixtures("shim")
def test_it_says_which_form_is_asked_for_and_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWNLET_CUDA_UNROLL", "cluster:8")
    said = doctor.cuda_kernel_in_use()
    assert said.startswith("TOWNLET_CUDA_UNROLL asks for cluster:8: B = 64")
    assert "H = 128 fp32: resident, cluster of 8 blocks, 16 rows;" in said
    assert "H = 512 bf16: TOWNLET_CUDA_UNROLL is 'cluster:8'; expected a form that this GPU can launch" in said
