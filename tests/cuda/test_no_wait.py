"""Nothing in the update waits for a GPU: it runs through on fake CUDA tensors, whose numbers nobody can ask for."""

from __future__ import annotations

from pathlib import Path

import fake_gpu


def update(library: Path, kernels: str, *controls: str) -> list[str]:
    """What becomes of the update under each control."""
    return fake_gpu.run("fake_cuda.py", library, kernels, *controls)


def test_an_update_by_the_kernels_asks_the_gpu_for_nothing(fake_gpu_library: Path) -> None:
    assert update(fake_gpu_library, "compiled", "none") == ["no wait"]


def test_one_by_the_twins_neither_and_one_that_asks_is_caught(fake_gpu_library: Path) -> None:
    caught = {
        "none": "no wait",
        "item": "DataDependentOutputException",
        "bool": "DataDependentOutputException",
        "mask": "DynamicOutputShapeException",
        "download": "RuntimeError",
    }
    assert dict(zip(caught, update(fake_gpu_library, "twins", *caught), strict=True)) == caught
