"""The first run on a GPU: what is wrong, then what is slow, in less than ten minutes.

python benchmarks/gpu/first_run.py                  on a machine with a card, from the source tree
python benchmarks/gpu/first_run.py --rehearse       without a card: the same steps, with stand-ins for what needs one

The steps come in the order of their worth. Each has its own time limit, and one that fails or hangs does not stop the
others. The folder that --out names then holds summary.md, which can be pasted into a report, the output of each step,
and results.tar.gz with all of it. The settings of the card stay as they are. docs/guides/gpu.md says more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import programs
import summary
from step_runner import Background, Runner

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
WORK = ROOT / "build" / "gpu"
"""What the run builds: the kernels, smoke and micro, and the packages that were carried along."""

KEPT_FOR_TORCH = 200
"""Seconds that the wait for the kernels' build leaves over for what needs them."""

Command = Sequence[str | Path]
StandIn = tuple[Command, str]
"""What runs in a step's place, and in words what that is."""


# ---- what is there -------------------------------------------------------------------------------------------------


class Card(NamedTuple):
    """A GPU, as nvidia-smi or torch describes it."""

    name: str
    arch: int
    driver: str
    memory: str


def output_of(command: Command, seconds: float = 20.0) -> str:
    """What a command prints, stripped; "" where it is not there, fails or takes too long."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def ask_nvidia_smi(what: str, seconds: float = 20.0) -> str:
    """What nvidia-smi says of the first card that CUDA will use; "" where it cannot."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    return output_of(["nvidia-smi", f"--id={chosen}", f"--query-gpu={what}", "--format=csv,noheader"], seconds)


def find_card() -> Card | None:
    """The first card that CUDA will use, or None. Errors: ValueError for a card that the kernels do not run on."""
    said = ask_nvidia_smi("name,compute_cap,driver_version,memory.total")
    parts = [part.strip() for part in said.splitlines()[0].split(",")] if said else []
    if len(parts) != 4 or "." not in parts[1]:  # an old nvidia-smi does not know compute_cap
        code = "import torch; p = torch.cuda.get_device_properties(0); print(p.name, f'{p.major}.{p.minor}', sep='|')"
        said = output_of([sys.executable, "-c", code], 60.0)
        if not said:
            return None
        parts = [*said.splitlines()[-1].split("|"), "unknown", "unknown"]
    name, capability, driver, memory = parts
    return Card(name, programs.architecture(capability), driver, memory)


def nvcc() -> str | None:
    return shutil.which("nvcc")


def kernels() -> tuple[str, Path | None]:
    """Where the CUDA kernels are ("" where they are not built), and the source tree if they are in it.

    Those of an installed townlet come first, then those beside the source.
    """
    code = "import importlib.util as u; s = u.find_spec('townlet._cuda'); print(s.origin if s else '')"
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=HERE, timeout=30)
        if done.returncode == 0 and done.stdout.strip():
            inside = ROOT / "townlet" in Path(done.stdout.strip()).parents
            return done.stdout.strip(), ROOT if inside else None
    beside = ROOT / "townlet" / "_cuda.so"
    return (str(beside), ROOT) if beside.exists() else ("", ROOT)


def newer_source(library: Path) -> str:
    """The youngest source of the compiled libraries, where it is younger than `library`; else ""."""
    code = {".cpp", ".h", ".cu", ".cuh", ".inl", ".c"}
    sources = [file for file in (ROOT / "csrc").rglob("*") if file.suffix in code]
    youngest = max([*sources, ROOT / "CMakeLists.txt"], key=lambda file: file.stat().st_mtime)
    newer = youngest.stat().st_mtime > library.stat().st_mtime
    return youngest.relative_to(ROOT).as_posix() if newer else ""


def build_command(arch: int) -> Command:
    """Configures and builds all of townlet's libraries for one architecture, beside the source.

    Errors: ValueError naming what is missing.
    """
    for tool in ("cmake", "ninja", "nvcc"):
        if shutil.which(tool) is None:
            raise ValueError(f"the kernels cannot be built: {tool} is not on PATH")
    if importlib.util.find_spec("pybind11") is None:
        raise ValueError("the kernels cannot be built: pybind11 is not installed")
    folder = output_of([sys.executable, "-m", "pybind11", "--cmakedir"])
    chosen = programs.target(arch, programs.known_to())
    settings = ["-DTOWNLET_INPLACE=ON", "-DTOWNLET_CUDA=ON", f"-DTOWNLET_CUDA_ARCHITECTURES={chosen.cmake}"]
    settings += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={folder}"]
    script = 'cmake -S "$1" -B "$2" -G Ninja "${@:3}" && cmake --build "$2"'
    return ["bash", "-c", script, "build", ROOT, WORK / "build", *settings]


def unpack(carried: Path | None) -> Path | None:
    """The folder into which the wheels of CARRIED/wheels were unpacked, or None where there are none."""
    wheels = sorted((carried / "wheels").glob("*.whl")) if carried else []
    if not wheels:
        return None
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return site


def commit(carried: Path | None) -> str:
    """The source's commit, with a + where files have changed since; from CARRIED/COMMIT where there is no git."""
    revision = output_of(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"])
    if revision:
        return revision + ("+" if output_of(["git", "-C", ROOT, "status", "--porcelain", "-uno"]) else "")
    noted = carried / "COMMIT" if carried else None
    return noted.read_text(encoding="utf-8").strip() if noted and noted.exists() else "unknown"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def gpu_tests() -> list[str]:
    """The test files that hold tests marked `cuda`, so that no others have to be imported."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.cuda" in file.read_text(encoding="utf-8")]


# ---- the steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step. `needs` names what has to be there first (see `Run.lacking`).

    stand_in: what a rehearsal runs in its place. Without one, a rehearsal says that the step was not run.
    """

    name: str
    seconds: float
    command: Command
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    tail: int = 25
    stand_in: StandIn | None = None


def before_torch() -> list[Step]:
    """Which clusters the card holds; whether the kernels are right; what they are built from; what they take."""
    smoke, on_host = WORK / "smoke", WORK / "host" / "smoke"
    tiny: StandIn = ([on_host, "check", "tiny"], "smoke.cu compiled for the CPU, with the shim of tests/emu")
    return [
        Step("clusters", 15, [smoke, "clusters"], ("clusters", "smoke")),
        Step("smoke_tiny", 30, [smoke, "check", "tiny"], ("smoke",), tail=40, stand_in=tiny),
        Step("smoke_check", 60, [smoke, "check"], ("smoke",), tail=40),
        Step("micro", 40, [WORK / "micro"], ("micro",)),
        Step("smoke_time", 90, [smoke, "time"], ("smoke",), tail=150),
    ]


def with_torch(out: Path) -> list[Step]:
    """The package: operators, tests, sanitizers, times, the doctor, a training run, the suites."""
    python = sys.executable
    suites: Command = [python, HERE.parent / "run.py"]
    workers = ["-n", str(min(6, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-P", "-m", "pytest", *gpu_tests(), "-m", "cuda", "-q", "-p", "no:cacheprovider", *workers]
    sanitizer: Command = [shutil.which("compute-sanitizer") or "compute-sanitizer", "--error-exitcode", "9"]
    tiny: Command = [WORK / "smoke", "check", "tiny"]
    needs, tools = ("kernels",), ("smoke", "compute-sanitizer")
    train: Command = [python, "-P", "-m", "townlet", "train", "--run-dir", WORK / "run"]
    skipped = "the same command, which skips every test where there is no GPU"
    results: Command = ["--out", out / "suites"]
    quick: Command = [python, HERE / "quick_bench.py", "--out", out, "--seconds"]
    short_run = ["--device", "cpu", "--members", "2", "--total-steps", "8000", "--learning-starts", "5248"]
    short_run += ["--eval-every", "0"]
    long_run = ["--device", "cuda", "--members", "8", "--total-steps", "400000", "--eval-every", "200000"]
    return [
        Step("one_check", 40, [python, HERE / "one_check.py", "cuda"], needs,
             stand_in=([python, HERE / "one_check.py", "cpu"], "the same check of the CPU's kernels")),
        Step("pytest", 120, [*pytest, "--tb=short", "--maxfail=60"], needs, {"OMP_NUM_THREADS": "2"}, 60,
             stand_in=(pytest, skipped)),
        Step("pytest_step", 60, [*pytest, "-k", "TestOperators", "--tb=line"], needs,
             {"OMP_NUM_THREADS": "2", "TOWNLET_CUDA_UNROLL": "step"}, 15,
             stand_in=([*pytest, "-k", "TestOperators"], skipped)),
        Step("memcheck", 45, [*sanitizer, "--tool", "memcheck", *tiny], tools, tail=12),
        Step("quick_bench", 130, [*quick, "120"], needs, tail=70,
             stand_in=([*quick, "60", "--device", "cpu"], "the same script on the CPU, with tiny sizes")),
        Step("doctor", 50, [python, "-P", "-m", "townlet", "doctor", "--device", "cuda"], needs, tail=45,
             stand_in=([python, "-P", "-m", "townlet", "doctor"], "the doctor's checks of the CPU's kernels")),
        Step("train", 40, [*train, *long_run], needs, tail=12,
             stand_in=([*train, *short_run], "a short run of two members on the CPU")),
        Step("synccheck", 40, [*sanitizer, "--tool", "synccheck", *tiny], tools, tail=12),
        Step("racecheck", 60, [*sanitizer, "--tool", "racecheck", *tiny], tools, tail=12),
        Step("suite_roofline", 60, [*suites, "gpu-roofline", *results], needs, tail=30),
        Step("suite_update", 70, [*suites, "gpu-update", *results], needs, tail=30),
        Step("suite_gpu", 150, [*suites, "gpu", *results], needs, tail=60,
             stand_in=([*suites, "resets", "--quick", *results], "the suite `resets` on the CPU, with tiny sizes")),
    ]  # fmt: skip


# ---- the run -------------------------------------------------------------------------------------------------------


class Run:
    """One run, from the card to results.tar.gz.

    `lacking` holds, for what steps need, why it is not there.
    """

    def __init__(self, card: Card | None, out: Path, limit: float, carried: Path | None):
        self.card, self.out, self.carried = card, out, carried
        self.rehearsal = card is None
        self.arch = card.arch if card else programs.CLUSTERS
        self.lacking: dict[str, str] = {}
        self.facts: dict[str, str] = {}
        self.kernels = ""
        self.tree: Path | None = None
        self.runner = Runner(out, limit, after=self.write_summary)

    def all(self) -> int:
        """Every step; 1 where one of them failed or ran out of time, else 0."""
        self.describe()
        built = self.start_build()
        try:
            self.prepare_programs()
            self.steps(before_torch())
            self.finish_build(built)
            self.steps(with_torch(self.out))
        except (KeyboardInterrupt, SystemExit):
            self.facts["ended early"] = "the run was told to end; a step that is not in the table did not begin"
            raise
        finally:
            if built is not None and all(result.name != built.name for result in self.runner.results):
                self.runner.interrupt(built)
            self.describe_end()
            self.pack()
        return 1 if any(r.rc not in (0, None) for r in self.runner.results) else 0

    def describe(self) -> None:
        """What a reader of the figures needs to know; and clocks and temperature at the beginning."""
        card = self.card
        found = nvcc()
        compiler = output_of([found, "--version"]).splitlines()[-2:-1] if found else []
        self.facts |= {
            "card": f"{card.name}, {card.memory}" if card else f"none; sm_{self.arch} is assumed",
            "architecture": f"sm_{self.arch}",
            "driver": card.driver if card else "none",
            "torch": version("torch"),
            "commit": commit(self.carried),
            "CUDA compiler": compiler[0] if compiler else "none",
            "Python": f"{platform.python_version()}, {os.cpu_count()} processors, {platform.system()}",
            "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        }
        site = unpack(self.carried)
        self.kernels, self.tree = kernels()
        paths = [str(path) for path in (self.tree, site) if path] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        os.environ |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if self.arch < programs.CLUSTERS:
            self.lacking["clusters"] = (
                f"sm_{self.arch} has no thread-block clusters: they begin with sm_{programs.CLUSTERS}"
            )
            self.facts["clusters"] = f"none on sm_{self.arch}; smoke and micro leave out what needs them"
        if shutil.which("compute-sanitizer") is None:
            self.lacking["compute-sanitizer"] = "compute-sanitizer is not on PATH"
        if card:
            what = "CLOCK,PERFORMANCE,POWER,TEMPERATURE,ECC"
            self.runner.step("machine", 15, ["nvidia-smi", "-q", "-d", what], tail=0)

    def describe_end(self) -> None:
        """Clocks and temperature at the end, which say whether the card was slowed down."""
        query = "clocks.sm,clocks.max.sm,clocks_throttle_reasons.active,temperature.gpu,power.draw"
        said = ask_nvidia_smi(query, 3.0) if self.card else ""
        if said:
            self.facts["clock, its maximum, throttled by, temperature, power at the end"] = said.splitlines()[0]
        self.facts["seconds"] = f"{self.runner.gone():.0f} of {self.runner.limit:.0f}"
        self.write_summary()

    def start_build(self) -> Background | None:
        """Begin to build the kernels where there are none, or where those in the source tree are older than it.

        An installed townlet is left as it is, and so are kernels that cannot be built anew; the summary says how old
        they are.
        """
        newer = newer_source(Path(self.kernels)) if self.kernels else ""
        if self.kernels and (self.tree is None or not newer):
            self.facts["kernels"] = "they were there already" + (f", and are older than {newer}" if newer else "")
            return None
        self.facts["kernels"] = f"built anew by this run: {newer} was newer" if newer else "built by this run"
        try:
            command = build_command(self.arch)
        except (ValueError, OSError, subprocess.CalledProcessError) as error:
            if newer:
                self.facts["kernels"] = f"they were there already, are older than {newer}, and were not built anew"
            else:
                self.lacking["kernels"] = str(error)
            self.runner.leave_out("build", str(error))
            return None
        return self.runner.background("build", command)

    def finish_build(self, built: Background | None) -> None:
        """Wait for the kernels, but leave time for what needs them."""
        if built is None:
            return
        most = max(0.0, self.runner.left() - KEPT_FOR_TORCH)
        if self.runner.wait_for(built, most).rc != 0:
            self.lacking["kernels"] = "the kernels were not built"

    def prepare_programs(self) -> None:
        """smoke and micro: those that were carried along where they run on this card, else compiled here."""
        WORK.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(WORK / "run", ignore_errors=True)  # an earlier training run
        if self.carried and all((self.carried / name).exists() for name in ("smoke", "micro")):
            for name in ("smoke", "micro"):
                shutil.copy2(self.carried / name, WORK / name)
                (WORK / name).chmod(0o755)
            if self.rehearsal or self.runner.step("card", 15, [WORK / "smoke", "card"]).rc == 0:
                self.facts["smoke and micro"] = "carried along"
                return self.compile_stand_in()
        self.facts["smoke and micro"] = "compiled by this run"
        for name in ("smoke", "micro"):
            (WORK / name).unlink(missing_ok=True)
        why = "nvcc is not on PATH, and no programs that run here were carried along"
        if nvcc() is None:
            self.runner.leave_out("compile", why)
        else:
            arch = ["--arch", str(self.arch)]
            self.runner.step("compile", 150, [sys.executable, HERE / "programs.py", WORK, *arch], tail=5)
            why = "it was not compiled"
        for name in ("smoke", "micro"):  # one of them may have been compiled before the time was over
            if not (WORK / name).exists():
                self.lacking[name] = f"{name}: {why}"
        return self.compile_stand_in()

    def compile_stand_in(self) -> None:
        """For a rehearsal, smoke.cu for the CPU."""
        if self.rehearsal:
            host = WORK / "host"
            self.runner.step("compile_host", 150, [sys.executable, HERE / "programs.py", host, "--host"], tail=5)

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            why = next((self.lacking[need] for need in step.needs if need in self.lacking), "")
            options: dict[str, Any] = {"environment": step.environment, "folder": ROOT, "tail": step.tail}
            if self.rehearsal and step.stand_in is None:
                self.runner.leave_out(step.name, "it needs a GPU")
            elif self.rehearsal and step.stand_in is not None:
                command, what = step.stand_in
                self.runner.step(step.name, step.seconds, command, note=f"stand-in: {what}", **options)
            elif why:
                self.runner.leave_out(step.name, why)
            else:
                self.runner.step(step.name, step.seconds, step.command, **options)

    def write_summary(self) -> None:
        text = summary.render(self.facts, self.runner.results, self.out, rehearsal=self.rehearsal)
        (self.out / "summary.md").write_text(text, encoding="utf-8")

    def pack(self) -> None:
        """results.tar.gz: everything in the folder."""
        packed = self.out / "results.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            for file in sorted(self.out.rglob("*")):
                if file != packed and file.is_file():
                    archive.add(file, Path(self.out.name) / file.relative_to(self.out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for everything (default: 570)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: one in benchmarks/results/gpu/)")
    parser.add_argument("--carried", type=Path, default=ROOT / ".gpu",
                        help="folder with programs and wheels from another machine (default: .gpu in the source tree, "
                        "where it is there)")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="run without a GPU, with stand-ins")
    options = parser.parse_args()
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"  # where NVIDIA's installer puts nvcc
    beside = Path(sys.executable).parent  # cmake, ninja and pytest of a virtual environment that is not activated
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(beside), str(toolkit)])
    try:
        card = None if options.rehearse else find_card()
    except ValueError as error:
        print(f"first_run.py: {error}", file=sys.stderr)
        return 2
    if card is None and not options.rehearse:
        print(
            "first_run.py: no GPU was found; expected one that nvidia-smi or torch knows, or --rehearse",
            file=sys.stderr,
        )
        return 2
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    default = RESULTS / f"sm_{card.arch}-{stamp}" if card else WORK / f"rehearsal-{stamp}"
    out = (options.out or default).resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is running is killed, and the results are packed
    carried = options.carried.resolve() if options.carried.is_dir() else None
    rc = Run(card, out, options.limit, carried).all()
    print(f"\n{(out / 'summary.md').read_text(encoding='utf-8')}\nsummary.md and results.tar.gz are in {out}")
    return rc


if __name__ == "__main__":
    raise SystemExit(main())
