"""The first run on a GPU (benchmarks/gpu), as far as it can be seen without one.

Its runner, the choice of architecture, the order of things, the summary, smoke.cu's check on the host shim; and that
both programs compile for every kind of card.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import first_run
import programs
import pytest
import summary
from first_run import Card, Run, Step
from step_runner import INTERRUPTED, NOT_FOUND, OUT_OF_TIME, Result, Runner, lines

H100 = Card("NVIDIA H100 80GB HBM3", 90, "580.65.06", "81559 MiB")
A100 = Card("NVIDIA A100-SXM4-40GB", 80, "570.86.10", "40960 MiB")


def quick(tmp_path: Path, limit: float = 60.0, **options: float) -> Runner:
    """A runner that is as short of patience as a test."""
    return Runner(tmp_path, limit, **{"least": 0.1, "grace": 0.3, "reserve": 0.0, **options})


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def alive(pid: int) -> bool:
    """Whether a process still runs (one that has ended and that nobody has asked about does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone_soon(pid: int) -> bool:
    """Whether a process that was killed has ended; it may take a moment."""
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# ---- the runner ------------------------------------------------------------------------------------------------------


class TestRunner:
    def test_a_step_that_fails_does_not_stop_the_rest(self, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        runner.step("fails", 10, shell("echo before; exit 3"))
        runner.step("missing", 10, ["no-such-program"])
        runner.step("works", 10, shell("echo out; echo err >&2"))
        assert [(r.name, r.rc, r.verdict) for r in runner.results] == [
            ("fails", 3, "rc 3"),
            ("missing", NOT_FOUND, f"rc {NOT_FOUND}"),
            ("works", 0, "ok"),
        ]
        assert lines(runner.output("fails")) == ["before"]
        assert lines(runner.output("works")) == ["out", "err"]
        assert runner.results[1].note == "no-such-program was not found"

    def test_a_step_gets_its_limit_and_no_more(self, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        in_time = runner.step("in_time", 10, shell("sleep 0.2"))
        late = runner.step("late", 0.5, shell("echo begun; sleep 30"))
        assert (in_time.rc, late.rc) == (0, OUT_OF_TIME)
        assert 0.5 <= late.seconds < 5
        assert "killed after" in late.note
        assert lines(runner.output("late")) == ["begun"]  # what it had printed is kept

    @pytest.mark.parametrize("ignores", ["", "trap '' TERM; "], ids=["obeys", "ignores the request to end"])
    def test_a_hung_step_is_killed_with_its_children(self, ignores: str, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        child = f"sh -c '{ignores}sleep 60; sleep 60' & echo $!; " if not ignores else f"{ignores}sleep 60 & echo $!; "
        result = runner.step("hung", 0.5, shell(f"{child}wait; sleep 60"))
        assert result.rc == OUT_OF_TIME
        (pid,) = lines(runner.output("hung"))
        assert gone_soon(int(pid))

    def test_what_a_finished_step_leaves_running_is_killed(self, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        assert runner.step("leaves", 10, shell("sleep 60 >/dev/null & echo $!")).rc == 0
        (pid,) = lines(runner.output("leaves"))
        assert gone_soon(int(pid))

    def test_where_no_time_is_left_steps_are_left_out_and_that_is_said(self, tmp_path: Path) -> None:
        said: list[str] = []
        runner = quick(tmp_path, 2.0, reserve=0.5, least=0.5)
        runner.say = said.append
        runner.step("first", 30, shell("sleep 30"))  # all that is left is less than its own limit
        runner.step("second", 30, shell("echo never"))
        assert runner.gone() < 2.0 + runner.grace
        first, second = runner.results
        assert (first.rc, second.rc, second.verdict) == (OUT_OF_TIME, None, "left out")
        assert second.note == "no time was left: it may take 30 s, and 0 s remained"
        assert any("second: left out" in line for line in said)
        assert not runner.output("second").exists()
        control = quick(tmp_path)
        assert control.step("second", 30, shell("echo now")).rc == 0

    def test_results_are_handed_on_after_each_step(self, tmp_path: Path) -> None:
        runner, seen = quick(tmp_path), list[list[str]]()
        runner.after = lambda: seen.append([r.name for r in runner.results])
        runner.step("a", 5, shell("true"))
        runner.leave_out("b", "it is not there")
        assert seen == [["a"], ["a", "b"]]

    def test_a_command_beside_the_steps(self, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        beside = runner.background("build", shell("sleep 0.3; echo built; exit 4"))
        assert beside is not None
        runner.step("meanwhile", 5, shell("true"))
        assert runner.wait_for(beside, 10).rc == 4
        assert [r.name for r in runner.results] == ["meanwhile", "build"]
        slow = runner.background("slow", shell("sleep 60"))
        assert slow is not None
        assert runner.wait_for(slow, 0.2).rc == OUT_OF_TIME
        assert gone_soon(slow.process.pid)

    def test_environment_and_folder_reach_the_step(self, tmp_path: Path) -> None:
        runner = quick(tmp_path)
        runner.step("where", 5, shell("echo $WORD; pwd"), environment={"WORD": "here"}, folder=tmp_path)
        assert lines(runner.output("where")) == ["here", str(tmp_path)]

    def test_when_the_run_itself_is_ended_its_step_is_too(self, tmp_path: Path) -> None:
        def end(*_: object) -> None:
            raise SystemExit(143)

        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        runner = quick(tmp_path)
        try:
            with pytest.raises(SystemExit):
                runner.step("long", 60, shell("echo $$; sleep 60"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        (pid,) = lines(runner.output("long"))
        assert gone_soon(int(pid))
        (result,) = runner.results
        assert (result.name, result.rc, result.verdict) == ("long", INTERRUPTED, "interrupted")
        assert 0.1 < result.seconds < 5
        assert result.note == "killed: the run was told to end"


# ---- which card ------------------------------------------------------------------------------------------------------

KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)  # to nvcc 13.0
CARDS = {
    "8.0": ("-gencode=arch=compute_80,code=sm_80", "80-real"),
    "8.6": ("-gencode=arch=compute_86,code=sm_86", "86-real"),
    "8.9": ("-gencode=arch=compute_89,code=sm_89", "89-real"),
    "9.0": ("-gencode=arch=compute_90,code=sm_90", "90-real"),
    "12.0": ("-gencode=arch=compute_120,code=sm_120", "120-real"),
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("capability", CARDS)
def test_the_architecture_is_the_cards(capability: str, tools: Path) -> None:
    program(
        tools / "nvidia-smi", f"echo 'Some GPU, {capability}, 580.1, 8192 MiB'; echo 'Other GPU, 7.0, 580.1, 1 MiB'"
    )
    card = first_run.find_card()
    assert card == Card("Some GPU", round(float(capability) * 10), "580.1", "8192 MiB")
    target = programs.target(card.arch, KNOWN)
    assert (target.nvcc, target.cmake) == CARDS[capability]


def test_the_first_visible_card_is_asked_about(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools / "nvidia-smi", 'case "$*" in *--id=3*) echo "Fourth, 8.6, 1, 2";; *) echo "First, 9.0, 1, 2";; esac')
    assert first_run.find_card() == Card("First", 90, "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    assert first_run.find_card() == Card("Fourth", 86, "1", "2")


def test_where_nvidia_smi_does_not_know_it_torch_does(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools / "nvidia-smi", "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2")
    assert first_run.find_card() is None  # torch sees no card here either
    asked = first_run.output_of
    monkeypatch.setattr(first_run, "output_of", lambda c, s=1.0: "A|8.9" if c[0] == sys.executable else asked(c, s))
    assert first_run.find_card() == Card("A", 89, "unknown", "unknown")


def test_a_card_that_is_too_old_is_refused(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(tools / "nvidia-smi", "echo 'Tesla T4, 7.5, 550.1, 15360 MiB'")
    with pytest.raises(ValueError, match=r"compute capability is 7\.5; expected 8\.0 or later"):
        first_run.find_card()
    with pytest.raises(ValueError, match=r"compute capability is 'new'; expected MAJOR\.MINOR"):
        programs.architecture("new")


def test_an_nvcc_that_does_not_know_the_card_leaves_ptx_for_the_driver() -> None:
    assert programs.target(120, (75, 80, 86, 90)) == (90, False)
    assert programs.target(120, (75, 80, 86, 90)).nvcc == "-gencode=arch=compute_90,code=compute_90"
    assert programs.target(120, (75, 80, 86, 90)).cmake == "90-virtual"
    with pytest.raises(ValueError, match=r"arch is 80; expected one that nvcc knows, or a later one: \[60, 75\]"):
        programs.target(80, (75, 60))


# ---- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run builds in here, has its kernels already, and starts none of the steps proper."""
    monkeypatch.setattr(first_run, "WORK", tmp_path / "work")
    monkeypatch.setattr(first_run, "kernels", lambda: ("somewhere/_cuda.so", None))
    monkeypatch.setattr(first_run, "newer_source", lambda library: "")
    monkeypatch.setattr(first_run, "before_torch", list)
    monkeypatch.setattr(first_run, "with_torch", lambda out: [])
    monkeypatch.setattr(first_run, "nvcc", lambda: None)
    for name in ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
    return tmp_path / "work"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def carried(tmp_path: Path, card: str = "exit 0") -> Path:
    """A folder from another machine, whose smoke answers so when it is asked for its card."""
    folder = tmp_path / "carried"
    (folder / "wheels").mkdir(parents=True)
    program(folder / "smoke", f'test "$1" = card && {{ {card}; }}; echo "smoke $*"')
    program(folder / "micro", "echo micro")
    (folder / "COMMIT").write_text("abc123\n", encoding="utf-8")
    with zipfile.ZipFile(folder / "wheels" / "little-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("little_carried_package.py", "ANSWER = 42\n")
    return folder


STEPS = [
    Step("right", 5, shell("echo fine")),
    Step("wrong", 5, shell("echo bad; exit 7"), stand_in=(shell("echo instead"), "an echo")),
    Step("needs_smoke", 5, shell("echo never"), ("smoke",)),
    Step("last", 5, [sys.executable, "-c", "import little_carried_package as p; print(p.ANSWER)"]),
]


def test_every_step_is_tried_and_everything_is_packed(
    work: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_run, "with_torch", lambda out: STEPS)
    run = Run(H100, out, 60.0, carried(tmp_path))
    assert run.all() == 1
    by_name = {r.name: r for r in run.runner.results}
    assert list(by_name) == ["machine", "card", "right", "wrong", "needs_smoke", "last"]
    assert [by_name[n].rc for n in ("card", "right", "wrong", "needs_smoke", "last")] == [0, 0, 7, 0, 0]
    assert lines(out / "last.txt") == ["42"]  # the packages that were carried along are there
    assert run.facts["smoke and micro"] == "carried along"
    assert (work / "smoke").exists()
    with tarfile.open(out / "results.tar.gz") as archive:
        assert {"out/summary.md", "out/right.txt", "out/wrong.txt", "out/last.txt"} <= set(archive.getnames())
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# First run on a GPU: NVIDIA H100 80GB HBM3")
    assert "| wrong | rc 7 | 7 |" in text
    assert "REHEARSAL" not in text


def test_without_a_failure_the_exit_code_is_0(
    work: Path, out: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tools / "nvidia-smi", "echo clocks")
    monkeypatch.setattr(first_run, "with_torch", lambda out: STEPS[:1])
    run = Run(H100, out, 60.0, None)
    assert run.all() == 0
    assert [(r.name, r.rc) for r in run.runner.results] == [("machine", 0), ("compile", None), ("right", 0)]
    assert run.facts["clock, its maximum, throttled by, temperature, power at the end"] == "clocks"


def test_programs_that_do_not_run_here_are_not_taken(
    work: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_run, "with_torch", lambda out: STEPS)
    run = Run(H100, out, 60.0, carried(tmp_path, "echo FAILED: no kernel image is available; exit 3"))
    run.all()
    by_name = {r.name: r for r in run.runner.results}
    assert by_name["card"].rc == 3
    why = "nvcc is not on PATH, and no programs that run here were carried along"
    assert (by_name["compile"].rc, by_name["compile"].note) == (None, why)
    assert (by_name["needs_smoke"].rc, by_name["needs_smoke"].note) == (None, f"smoke: {why}")
    assert by_name["last"].rc == 0
    assert f"| needs_smoke | left out |  | 0.0 | smoke: {why} |" in (out / "summary.md").read_text(encoding="utf-8")


def test_of_two_programs_the_one_that_was_compiled_is_used(
    work: Path, out: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.mkdir()
    program(work / "smoke", "echo from an earlier run")
    fake = f"import pathlib, sys; pathlib.Path({str(work)!r}, 'micro').touch(); sys.exit(1)"
    (tools / "programs.py").write_text(fake, encoding="utf-8")
    monkeypatch.setattr(first_run, "HERE", tools)
    monkeypatch.setattr(first_run, "nvcc", lambda: "nvcc")
    run = Run(H100, out, 60.0, None)
    run.prepare_programs()
    run.steps([Step("smoke", 5, shell("true"), ("smoke",)), Step("micro", 5, shell("true"), ("micro",))])
    assert [(r.name, r.rc) for r in run.runner.results] == [("compile", 1), ("smoke", None), ("micro", 0)]
    assert run.runner.results[1].note == "smoke: it was not compiled"


@pytest.mark.parametrize(("card", "has"), [(A100, False), (H100, True), (Card("RTX 4090", 89, "1", "2"), False)])
def test_cards_without_clusters_leave_their_step_out(card: Card, has: bool, work: Path, out: Path) -> None:
    run = Run(card, out, 60.0, None)
    run.describe()
    run.steps([Step("clusters", 5, shell("true"), ("clusters",)), Step("next", 5, shell("true"))])
    clusters, after = run.runner.results[-2:]
    assert (clusters.rc, after.rc) == (0 if has else None, 0)
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert (f"sm_{card.arch} has no thread-block clusters: they begin with sm_90" in text) == (not has)


def test_a_rehearsal_says_so_and_what_stood_in(work: Path, out: Path) -> None:
    run = Run(None, out, 60.0, None)
    run.describe()
    run.steps(STEPS[:2])
    right, wrong = run.runner.results
    assert (right.rc, right.note) == (None, "it needs a GPU")
    assert (wrong.rc, wrong.note) == (0, "stand-in: an echo")
    assert lines(out / "wrong.txt") == ["instead"]
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# REHEARSAL of the first run on a GPU: no GPU was used")
    assert "- `wrong`: stand-in: an echo" in text
    assert "none; sm_90 is assumed" in text


def test_a_run_that_is_told_to_end_says_how_far_it_came(work: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise SystemExit(143)

    slow = [STEPS[0], Step("slow", 60, shell("echo begun; sleep 60")), Step("after", 5, shell("true"))]
    monkeypatch.setattr(first_run, "kernels", lambda: ("", None))
    monkeypatch.setattr(first_run, "build_command", lambda arch: shell("echo compiling; sleep 60"))
    monkeypatch.setattr(first_run, "before_torch", lambda: slow)
    run = Run(A100, out, 60.0, None)
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(SystemExit):
            run.all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ended = {r.name: r.rc for r in run.runner.results if r.rc is not None and r.name != "machine"}
    assert ended == {"right": 0, "slow": INTERRUPTED, "build": INTERRUPTED}
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "| slow | interrupted | 143 |" in text
    assert "| build | interrupted | 143 |" in text
    assert "| ended early | the run was told to end; a step that is not in the table did not begin |" in text
    with tarfile.open(out / "results.tar.gz") as archive:
        assert {"out/summary.md", "out/slow.txt", "out/build.txt"} <= set(archive.getnames())


def test_a_source_that_is_younger_than_the_kernels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "ROOT", tmp_path)
    library = tmp_path / "townlet" / "_cuda.so"
    files = {"CMakeLists.txt": 10, "csrc/cuda/a.cu": 20, "csrc/math/b.h": 30, "csrc/cuda/README.md": 99}
    for name, age in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    library.parent.mkdir()
    library.touch()
    for age, newer in ((40, ""), (30, ""), (25, "csrc/math/b.h"), (5, "csrc/math/b.h")):
        os.utime(library, (age, age))
        assert first_run.newer_source(library) == newer
    os.utime(tmp_path / "CMakeLists.txt", (50, 50))
    assert first_run.newer_source(library) == "CMakeLists.txt"


NEWER = "csrc/cuda/step.cu"


@pytest.mark.parametrize(
    ("newer", "in_tree", "compiler", "begun", "fact"),
    [
        ("", True, True, False, "they were there already"),
        (NEWER, True, True, True, f"built anew by this run: {NEWER} was newer"),
        (NEWER, True, False, False, f"they were there already, are older than {NEWER}, and were not built anew"),
        (NEWER, False, True, False, f"they were there already, and are older than {NEWER}"),
    ],
    ids=["as new as their sources", "older", "older, no compiler", "older, of an installed townlet"],
)
def test_kernels_that_are_older_than_their_sources(
    newer: str, in_tree: bool, compiler: bool, begun: bool, fact: str, work: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def command(arch: int) -> list[str]:
        if not compiler:
            raise ValueError("the kernels cannot be built: nvcc is not on PATH")
        return shell("true")

    monkeypatch.setattr(first_run, "kernels", lambda: ("somewhere/_cuda.so", programs.ROOT if in_tree else None))
    monkeypatch.setattr(first_run, "newer_source", lambda library: newer)
    monkeypatch.setattr(first_run, "build_command", command)
    monkeypatch.setattr(first_run, "with_torch", lambda out: [Step("torch", 5, shell("true"), ("kernels",))])
    run = Run(A100, out, 300.0, None)
    run.all()
    by_name = {r.name: r for r in run.runner.results}
    assert run.facts["kernels"] == fact
    assert ("build" in by_name and by_name["build"].rc == 0) == begun
    assert by_name["torch"].rc == 0  # in every one of these cases there are kernels to run with


def test_a_build_that_fails_takes_its_steps_with_it_and_no_others(
    work: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_run, "kernels", lambda: ("", None))
    monkeypatch.setattr(first_run, "build_command", lambda arch: shell(f"echo building for {arch}; exit 1"))
    monkeypatch.setattr(first_run, "with_torch", lambda out: [Step("torch", 5, shell("true"), ("kernels",)), STEPS[0]])
    run = Run(A100, out, 300.0, None)
    assert run.all() == 1
    by_name = {r.name: r for r in run.runner.results}
    assert by_name["build"].rc == 1
    assert lines(out / "build.txt") == ["building for 80"]
    assert (by_name["torch"].rc, by_name["torch"].note) == (None, "the kernels were not built")
    assert by_name["right"].rc == 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_kernels_are_built_for_the_card(monkeypatch: pytest.MonkeyPatch, tools: Path) -> None:
    for tool in ("cmake", "ninja"):
        program(tools / tool, "exit 0")
    assert "-DTOWNLET_CUDA_ARCHITECTURES=86-real" in first_run.build_command(86)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ninja" else which(name))
    with pytest.raises(ValueError, match="the kernels cannot be built: ninja is not on PATH"):
        first_run.build_command(86)


def test_the_steps_proper_fit_the_tests_and_tools_that_there_are() -> None:
    """Every file a step starts is there, and the marked tests are found."""
    assert {"tests/cuda/test_cuda.py", "tests/doctor/test_doctor_cuda.py"} <= set(first_run.gpu_tests())
    assert "tests/bench/test_bench_gpu.py" not in first_run.gpu_tests()
    assert "class TestOperators" in (programs.ROOT / "tests" / "cuda" / "test_cuda.py").read_text(
        encoding="utf-8"
    )  # pytest_step
    steps = [*first_run.before_torch(), *first_run.with_torch(Path("out"))]
    names = [s.name for s in steps]
    assert len(set(names)) == len(names)
    assert set(summary.QUOTED) <= set(names)
    for step in steps:
        for command in [step.command, *([step.stand_in[0]] if step.stand_in else [])]:
            scripts = [Path(part) for part in command if str(part).endswith(".py") and Path(part).is_absolute()]
            assert all(script.exists() for script in scripts), step.name


def test_the_commit_is_known_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "ROOT", tmp_path)
    assert first_run.commit(None) == "unknown"
    assert first_run.commit(carried(tmp_path)) == "abc123"


# ---- the summary -----------------------------------------------------------------------------------------------------

FACTS = {"card": "NVIDIA H100", "driver": "580.1", "torch": "2.11.0+cu130", "commit": "abc123"}


@pytest.fixture
def measured(out: Path) -> Path:
    """A folder with what some steps have printed."""
    (out / "smoke_check.txt").write_text("H100\nok    a\nWRONG b\n97 forms ran, 1 wrong\n", encoding="utf-8")
    (out / "pytest.txt").write_text("....F\nFAILED tests/cuda/test_cuda.py::x\n1 failed, 4 passed\n", encoding="utf-8")
    (out / "smoke_time.txt").write_text("\n".join(f"row {i}" for i in range(500)), encoding="utf-8")
    rows = [
        {"what": "operator", "case": "(64, 80, 512, 512)", "dtype": "bfloat16", "eager_ms": 2.5, "graph_ms": 2.25},
        {"what": "update", "case": "R2D2", "recorded": True, "ms": 3.0, "updates_per_s": 333.33},
        {"what": "failed", "case": "nn.LSTM", "error": "a | b"},
    ]
    (out / "quick.json").write_text(json.dumps(rows), encoding="utf-8")
    return out


def test_the_summary_holds_what_a_report_needs(measured: Path) -> None:
    results = [Result("smoke_check", 1, 12.34), Result("pytest", OUT_OF_TIME, 120.0, "killed after 120 s"),
               Result("smoke_time", 0, 60.0), Result("suite_gpu", None, 0.0, "no time was left")]  # fmt: skip
    text = summary.render(FACTS, results, measured)
    for key, value in FACTS.items():
        assert f"| {key} | {value} |" in text
    assert "| smoke_check | rc 1 | 1 | 12.3 |  |" in text
    assert f"| pytest | out of time | {OUT_OF_TIME} | 120.0 | 1 failed, 4 passed; killed after 120 s |" in text
    assert "| suite_gpu | left out |  | 0.0 | no time was left |" in text
    assert "WRONG b\n97 forms ran, 1 wrong" in text
    assert "FAILED tests/cuda/test_cuda.py::x" in text
    assert "| (64, 80, 512, 512) | bfloat16 | 2.5 | 2.25 |" in text
    assert "| R2D2 | True | 3 | 333.3 |" in text
    assert "| nn.LSTM | a \\| b |" in text
    assert "row 179\n... and 320 more lines" in text  # short enough to be pasted
    assert "row 180" not in text


@pytest.mark.parametrize(("said", "verdict"), [("150 skipped in 4.2s", "no test ran"), ("9 passed, 1 skipped", "ok")])
def test_skipped_tests_do_not_count_as_passed(said: str, verdict: str, out: Path) -> None:
    (out / "pytest.txt").write_text(f"ss\n{said}\n", encoding="utf-8")
    text = summary.render(FACTS, [Result("pytest", 0, 5.0)], out)
    assert f"| pytest | {verdict} | 0 | 5.0 | {said} |" in text


def test_the_summary_of_a_run_that_has_just_begun(out: Path) -> None:
    text = summary.render({}, [], out)
    assert text.startswith("# First run on a GPU: unknown card")
    assert "Key figures" not in text
    (out / "quick.json").write_text('[{"what"', encoding="utf-8")  # cut off while it was written
    assert "Key figures" not in summary.render({}, [], out)


# ---- smoke and micro -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """smoke.cu and the kernels, compiled for the CPU with the shim."""
    folder = tmp_path_factory.mktemp("smoke")
    programs.compile_for_host(folder)
    return folder


def smoke(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / "smoke", *arguments], capture_output=True, text=True, timeout=120)


def test_smoke_finds_every_form_right_on_the_host_shim(on_host: Path) -> None:
    done = smoke(on_host, "check", "tiny")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "38 forms ran, 0 wrong"
    for form in ("step", "single", "cluster:2x32", "grid:5x32"):
        assert f"fp32 {form}" in done.stdout
        assert f"bf16 {form}" in done.stdout
    assert smoke(on_host, "clocks").returncode == 4


@pytest.mark.parametrize(
    ("right", "broken", "direction"),
    [
        ("c[u] = f * c[u] + i * g;", "c[u] = c[u] + i * g;", "forward"),
        ("x * i * (1 - g * g);", "x * i * (1 - g);", "backward"),
        ("dc[u] = reset(t) ? 0 : x * f;", "dc[u] = x * f;", "backward"),
    ],
)
def test_smoke_sees_a_wrong_result(on_host: Path, tmp_path: Path, right: str, broken: str, direction: str) -> None:
    """The loop on the host and the kernels differ where one of them is changed."""
    for name in ("smoke.cu", "smoke_problem.h"):
        text = (programs.HERE / name).read_text(encoding="utf-8")
        assert (right in text) == (name == "smoke_problem.h")
        (tmp_path / name).write_text(text.replace(right, broken), encoding="utf-8")
    flags = ["-std=c++20", "-O1", f"-I{programs.EMU}", f"-I{programs.CUDA}"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *flags, "-x", "c++", "-c", tmp_path / "smoke.cu", "-o", tmp_path / "smoke.o"], check=True)
    others = [file for file in (on_host / "objects").glob("*.o") if file.name != "smoke.cu.o"]
    subprocess.run([compiler, "-pthread", tmp_path / "smoke.o", *others, "-o", tmp_path / "smoke"], check=True)
    done = smoke(tmp_path, "check", "tiny")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "38 forms ran, 38 wrong"
    first = done.stdout.splitlines()[1]
    errors = {word: float(first.split(word)[1].split()[0].rstrip(",")) for word in ("forward", "backward")}
    assert errors[direction] > 1e-3


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", ["smoke", "micro"])
def test_it_compiles_for_every_kind_of_card(source: str, tmp_path: Path) -> None:
    """About 6 seconds of processor time each."""
    targets = [programs.target(arch, KNOWN).nvcc for arch in (80, 86, 90, 120)]
    flags = ["-std=c++17", "-O3", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", f"-I{programs.CUDA}"]
    command = ["nvcc", *flags, *targets, "-c", programs.HERE / f"{source}.cu", "-o", tmp_path / f"{source}.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / f"{source}.o").stat().st_size > 0
