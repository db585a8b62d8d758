"""Registers and spills of the resident kernels as ptxas reports them; `python csrc/cuda/registers.py` prints the table.

registers.txt beside this file is its output with nvcc 13.0; run it again after a change to the kernels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("resident_*.cu"))
ARCHITECTURES = (80, 90)
REPORT = re.compile(
    r"entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
# of the mangled name: direction, product, exchange, tiles of 16 rows
NAME = re.compile(r"resident_(forward|backward)INS0_3(Fma|Mma)ENS0_\d+(\w+?)ExchangeELi(\d)E")


class Kernel(NamedTuple):
    """One kernel on one architecture; spills in bytes, stores and loads together."""

    arch: int
    name: str
    registers: int
    spills: int


def report(nvcc: str = "nvcc") -> list[Kernel]:
    """Compile the resident kernels and read what ptxas says of each that can run there (clusters need sm_90)."""
    with tempfile.TemporaryDirectory() as out:
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        command = [nvcc, "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", *targets, "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [[*command, str(source), "-o", f"{out}/{source.stem}.o"] for source in SOURCES]
            done = pool.map(lambda c: subprocess.run(c, check=True, capture_output=True, text=True), objects)
            text = "".join(each.stderr for each in done)
    kernels = []
    for mangled, arch, stores, loads, registers in REPORT.findall(text):
        match = NAME.search(mangled)
        if match is None:
            raise ValueError(f"unknown kernel {mangled}")
        direction, product, exchange, tiles = match.groups()
        if exchange == "Cluster" and int(arch) < 90:
            continue
        name = f"{direction} {'bf16' if product == 'Mma' else 'fp32'} {exchange.lower()} {16 * int(tiles)} rows"
        kernels.append(Kernel(int(arch), name, int(registers), int(stores) + int(loads)))
    return sorted(kernels)


if __name__ == "__main__":
    for k in report(*sys.argv[1:]):
        print(f"sm_{k.arch}  {k.name:<34}{k.registers:4} registers{k.spills:4} bytes spilled")
