"""The stand-in for a GPU (fake_cuda.cpp): how it is compiled, and how a script runs with it.

A script that wants it runs in a process of its own and calls `load` before it imports torch. Nothing here imports
torch, so that such a script can import this module first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from paths import HELPERS


def torch_root() -> Path:
    """Where torch is installed."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(folder: Path) -> Path:
    """Compiles the stand-in into `folder`."""
    out, root = folder / "libfake_cuda.so", torch_root()
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root / 'include'}"]
    command += [str(HELPERS / "fake_cuda.cpp"), "-o", str(out), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def load(library: str) -> None:
    """Loads the stand-in. It has to be there before torch asks for the devices that exist."""
    assert "torch" not in sys.modules, "torch is imported already; expected the stand-in before it"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_root() / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library)


def run(script: str, library: Path, *arguments: str) -> list[str]:
    """Runs a script among the helpers as `python SCRIPT LIBRARY ARGUMENT ...`; returns the lines that it prints."""
    command = [sys.executable, str(HELPERS / script), str(library), *arguments]
    paths = os.pathsep.join([str(HELPERS), *(p for p in sys.path if p)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
