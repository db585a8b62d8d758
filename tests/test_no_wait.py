"""Nothing in the update waits for a GPU: it runs through on fake CUDA tensors, whose numbers nobody can ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None or not sys.platform.startswith("linux"),
    reason="the stand-in for a GPU takes the place of CUDA in a Linux build of torch without it",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for a GPU, compiled."""
    out = tmp_path_factory.mktemp("fake_cuda") / "libfake_cuda.so"
    root = Path(torch.__file__).parent
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root / 'include'}"]
    command += [str(HERE / "fake_cuda.cpp"), "-o", str(out), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def update(library: Path, kernels: str, *controls: str) -> list[str]:
    """What becomes of the update under each control."""
    command = [sys.executable, str(HERE / "fake_cuda.py"), str(library), kernels, *controls]
    paths = os.pathsep.join([str(HERE), *(p for p in sys.path if p)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("\n")[:-1]


def test_an_update_by_the_kernels_asks_the_gpu_for_nothing(library: Path) -> None:
    assert update(library, "compiled", "none") == ["no wait"]


def test_one_by_the_twins_neither_and_one_that_asks_is_caught(library: Path) -> None:
    caught = {
        "none": "no wait",
        "item": "DataDependentOutputException",
        "bool": "DataDependentOutputException",
        "mask": "DynamicOutputShapeException",
        "download": "RuntimeError",
    }
    assert dict(zip(caught, update(library, "twins", *caught), strict=True)) == caught
