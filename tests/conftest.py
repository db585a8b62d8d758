"""Fixtures for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fake_gpu
import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread: tiny problems are faster so, and do not wait for cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fake_gpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for a GPU, compiled. It takes the place of CUDA in a Linux build of torch without CUDA."""
    if torch.version.cuda is not None or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in for a GPU takes the place of CUDA in a Linux build of torch without it")
    return fake_gpu.build(tmp_path_factory.mktemp("fake_gpu"))
