"""Compiles smoke.cu and micro.cu into a folder: `python benchmarks/gpu/programs.py FOLDER --arch 90`.

Both need nvcc and no GPU, so that they can be built on one machine and carried to another. They bring the CUDA runtime
with them. `--host` compiles smoke.cu with a C++ compiler and the shim of tests/emu instead: it then runs its check on
the CPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA, EMU = ROOT / "csrc" / "cuda", ROOT / "tests" / "emu"
OLDEST = 80
"""The kernels multiply bfloat16 on tensor cores, which begin with compute capability 8.0."""
CLUSTERS = 90
"""Thread-block clusters and distributed shared memory begin with compute capability 9.0."""


class Target(NamedTuple):
    """What to compile for: machine code for one architecture, or PTX that the driver translates for a later one."""

    arch: int
    real: bool

    @property
    def nvcc(self) -> str:
        return f"-gencode=arch=compute_{self.arch},code={'sm' if self.real else 'compute'}_{self.arch}"

    @property
    def cmake(self) -> str:
        return f"{self.arch}-{'real' if self.real else 'virtual'}"


def architecture(capability: str) -> int:
    """The number in nvcc's names for a compute capability: "9.0" -> 90, "12.0" -> 120.

    Errors: ValueError where it is not a compute capability, or an older one than the kernels run on.
    """
    match = re.fullmatch(r"(\d+)\.(\d)", capability.strip())
    if match is None:
        raise ValueError(f"compute capability is {capability!r}; expected MAJOR.MINOR, such as 9.0")
    arch = int(match[1]) * 10 + int(match[2])
    if arch < OLDEST:
        raise ValueError(f"compute capability is {capability.strip()}; expected 8.0 or later")
    return arch


def target(arch: int, known: Collection[int]) -> Target:
    """What to compile for a card of `arch` with an nvcc that knows the architectures `known`.

    Errors: ValueError where nvcc knows none that such a card could run.
    """
    if arch in known:
        return Target(arch, real=True)
    earlier = [a for a in known if OLDEST <= a < arch]
    if not earlier:
        raise ValueError(f"arch is {arch}; expected one that nvcc knows, or a later one: {sorted(known)}")
    return Target(max(earlier), real=False)


def known_to(nvcc: str = "nvcc") -> list[int]:
    """The architectures that an nvcc compiles for."""
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    return [int(number) for number in re.findall(r"compute_(\d+)\b", done.stdout)]


def kernel_sources() -> list[Path]:
    """The recurrent kernels, without torch."""
    return [CUDA / "resident.cpp", *sorted(CUDA.glob("resident_*.cu")), CUDA / "step.cu"]


def compile_for(folder: Path, arch: int, nvcc: str = "nvcc") -> None:
    """FOLDER/smoke and FOLDER/micro, for cards of `arch`; the sources are compiled side by side."""
    chosen = target(arch, known_to(nvcc))
    flags = ["-std=c++17", "-O3", chosen.nvcc, f"-I{CUDA}"]
    programs = {"micro": [HERE / "micro.cu"], "smoke": [HERE / "smoke.cu", *kernel_sources()]}
    build(folder, programs, [nvcc, *flags], [nvcc, chosen.nvcc])
    shutil.rmtree(folder / "objects")  # the folder may be carried to another machine


def compile_for_host(folder: Path, compiler: str | None = None) -> None:
    """FOLDER/smoke with the kernels on the host shim: only its check can run."""
    compiler = compiler or os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
    command = [compiler, *flags, "-pthread", f"-I{EMU}", f"-I{CUDA}"]
    sources = [HERE / "smoke.cu", *kernel_sources(), EMU / "emu_rt.cpp"]
    build(folder, {"smoke": sources}, [*command, "-x", "c++"], [compiler, "-pthread"])


def build(folder: Path, programs: dict[str, list[Path]], compile_: Sequence[str], link: Sequence[str]) -> None:
    """Compile every source to an object, side by side, and link each program as soon as its own objects are there."""
    objects = folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)

    def run(command: Sequence[str | Path]) -> None:
        words = [str(part) for part in command]
        print(" ".join(words), flush=True)
        subprocess.run(words, check=True)

    def compiled(source: Path) -> Path:
        into = objects / f"{source.name}.o"
        run([*compile_, "-c", source, "-o", into])
        return into

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = {name: [pool.submit(compiled, source) for source in sources] for name, sources in programs.items()}
        for name, parts in begun.items():
            run([*link, *(part.result() for part in parts), "-o", folder / name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the programs go")
    parser.add_argument("--arch", type=int, default=CLUSTERS, help="the card's compute capability, such as 80 or 90")
    parser.add_argument("--host", action="store_true", help="compile smoke.cu for the CPU, with the shim of tests/emu")
    options = parser.parse_args()
    try:
        if options.host:
            compile_for_host(options.folder)
        else:
            compile_for(options.folder, options.arch)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"programs.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
