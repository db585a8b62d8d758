"""Training on a simulated GPU: real numbers, tensors that say cuda:0, kernels on the host shim (sim_cuda.py).

It shows that every tensor of a run is on the device where it has to be, that the results are the CPU's, and that a
recorded update does nothing that a stream capture refuses. The scenarios and the faults are those of sim_cuda_runs.py.
"""

from __future__ import annotations

from pathlib import Path

import fake_gpu

REFUSED = "RuntimeError: operation not permitted when stream is capturing: "
MIXED = "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
OVERLAP = (
    "RuntimeError: unsupported operation: more than one element of the written-to tensor refers to a single memory "
    "location. Please clone() the tensor before performing the operation."
)


def outcomes(library: Path, scenarios: list[str]) -> dict[str, str]:
    """What becomes of each scenario: "ok", or the error."""
    return dict(zip(scenarios, fake_gpu.run("sim_cuda_runs.py", library, *scenarios), strict=True))


def test_every_form_of_the_update_is_the_cpus_and_its_recording_the_same_in_every_bit(fake_gpu_library: Path) -> None:
    variants = [
        "mlp, uniform replay", "prioritised replay", "soft target", "without memory", "running average", "bfloat16",
        "conv", "spatial",
    ]  # fmt: skip
    scenarios = [*(f"update:{variant}" for variant in variants), "update_without_target"]
    assert outcomes(fake_gpu_library, scenarios) == dict.fromkeys(scenarios, "ok")


def test_a_run_trains_there_moves_between_devices_copies_members_and_is_compared(fake_gpu_library: Path) -> None:
    scenarios = ["doctor", "act", "train", "resume", "pbt"]
    assert outcomes(fake_gpu_library, scenarios) == dict.fromkeys(scenarios, "ok")


def test_what_a_gpu_refuses_is_refused_and_faults_turn_the_simulation_red(fake_gpu_library: Path) -> None:
    expected = {
        "device": "ok",
        "waiting": "ok",
        # faults that stopped every training on a GPU, and two that made it slow
        "act/gamma stays on the device": f"{MIXED} (aten.equal, a tensor [2] on the CPU)",
        "update_without_target/pins expanded tensors": OVERLAP,
        "update:conv/symbols of the CPU": "AssertionError: Counter({'a copy from the CPU': 4})",
        "act/windows dropped by number": "AssertionError: {'a copy from the CPU': 1, 'a copy to the CPU': 1}",
        # what an update must not do
        "captured": "ok",
        "captured/item": f"{REFUSED}a number is read (aten._local_scalar_dense)",
        "captured/bool": f"{REFUSED}a number is read (aten._local_scalar_dense)",
        "captured/equal": f"{REFUSED}tensors are compared on the CPU (aten.equal)",
        "captured/nonzero": f"{REFUSED}a size is read (aten.nonzero)",
        "captured/mask": f"{REFUSED}a size is read (aten.index with a mask)",
        "captured/mask written": f"{REFUSED}a size is read (aten.index_put_ with a mask)",
        "captured/number written": f"{REFUSED}a copy from the CPU (aten.index_put_ with a number)",
        "captured/index of the CPU": f"{REFUSED}a copy from the CPU (aten.index with an index on the CPU)",
        "captured/download": f"{REFUSED}a copy to the CPU (aten._to_copy)",
        "captured/download in place": f"{REFUSED}a copy to the CPU (aten.copy_)",
        "captured/upload": f"{REFUSED}a copy from the CPU (aten._to_copy)",
        "captured/upload in place": f"{REFUSED}a copy from the CPU (aten.copy_)",
        "captured/new tensor": f"{REFUSED}a copy from the CPU (aten._to_copy)",
        "captured/pin": f"{REFUSED}memory is pinned (pin_memory)",
        "captured/numpy": "TypeError: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.",
        "captured/two devices": f"{MIXED} (aten.add, a tensor [2] on the CPU)",
    }
    assert outcomes(fake_gpu_library, list(expected)) == expected
