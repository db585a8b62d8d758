"""Runs the steps of a long check one after the other. Each has its own time limit, and none of them stops the rest.

A step is a command. Its output goes straight to a file of its own, so that a step which is killed leaves what it had
printed. A step that runs out of time is killed together with every process it has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

OUT_OF_TIME, NOT_FOUND, INTERRUPTED = 124, 127, 143
"""Exit codes of a step that was killed for its time, of one whose program is not there, and of one that was killed
because the run itself was told to end; a shell uses the same."""


@dataclass(frozen=True)
class Result:
    """How a step ended. rc is None where it was left out; the note says why, or what else a reader has to know."""

    name: str
    rc: int | None
    seconds: float
    note: str = ""

    @property
    def verdict(self) -> str:
        """One or two words for a table."""
        if self.rc is None:
            return "left out"
        words = {0: "ok", OUT_OF_TIME: "out of time", INTERRUPTED: "interrupted"}
        return words.get(self.rc, f"rc {self.rc}")


@dataclass
class Background:
    """A command that runs beside the steps until `Runner.wait_for` fetches its result."""

    name: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    begun: float


@dataclass
class Runner:
    """Takes steps, and keeps their results in `results`.

    Args:
        out: folder of the steps' output, NAME.txt each.
        limit: seconds for all steps together, counted from when the runner was made.
        least: a step that would get fewer seconds than this is left out.
        grace: seconds that a step has to end by itself before it is killed.
        reserve: seconds at the end that no step gets: for `grace`, and for what the caller does after the last step.
        say: where progress goes. after: called after each step, so that results are safe at once.
    """

    out: Path
    limit: float
    least: float = 5.0
    grace: float = 3.0
    reserve: float = 8.0
    say: Callable[[str], None] = print
    after: Callable[[], None] = lambda: None
    results: list[Result] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def gone(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    def left(self) -> float:
        """Seconds that steps may still use."""
        return self.limit - self.reserve - self.gone()

    def output(self, name: str) -> Path:
        """The file with a step's output."""
        return self.out / f"{name}.txt"

    def step(
        self,
        name: str,
        seconds: float,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        note: str = "",
        tail: int = 25,
    ) -> Result:
        """Run `command` for at most `seconds`, or less where less is left; print the last `tail` lines of its output.

        environment: variables beside this process's own. folder: where it runs. note: stands in the result.
        """
        most = min(seconds, self.left())
        if most < self.least:
            return self.leave_out(
                name, f"no time was left: it may take {seconds:.0f} s, and {max(most, 0):.0f} s remained"
            )
        self.say(f"== {name}: at most {most:.0f} s; {self.gone():.0f} s are gone")
        background = self.background(name, command, environment=environment, folder=folder)
        if background is None:
            return self._done(Result(name, NOT_FOUND, 0.0, f"{command[0]} was not found"), tail)
        return self.wait_for(background, most, note=note, tail=tail)

    def background(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Background | None:
        """Start `command` and return at once; None where there is no such program."""
        output = self.output(name).open("wb")
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,  # a group of its own, which is killed as a whole
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            output.close()
            return None
        return Background(name, process, output, time.monotonic())

    def wait_for(self, background: Background, seconds: float, *, note: str = "", tail: int = 25) -> Result:
        """Wait for at most `seconds`, kill what is still running then, and keep the result.

        Where this process is told to end meanwhile, the step is killed too, and its result says so.
        """
        try:
            rc = background.process.wait(max(0.0, min(seconds, self.left())))
        except subprocess.TimeoutExpired:
            rc = OUT_OF_TIME
            note = "; ".join(filter(None, [note, f"killed after {time.monotonic() - background.begun:.0f} s"]))
        except BaseException:
            self.interrupt(background, note)
            raise
        self.end(background)  # whatever it has left behind as well
        return self._done(Result(background.name, rc, time.monotonic() - background.begun, note), tail)

    def end(self, background: Background) -> None:
        """Kill the process and all others of its group: politely first, where it is still running."""
        process = background.process
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.grace)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        background.output.close()

    def interrupt(self, background: Background, note: str = "") -> Result:
        """Kill the process because the run ends before its time, and keep that as its result."""
        self.end(background)
        said = "; ".join(filter(None, [note, "killed: the run was told to end"]))
        return self._done(Result(background.name, INTERRUPTED, time.monotonic() - background.begun, said), 0)

    def leave_out(self, name: str, why: str) -> Result:
        """Note that a step does not run, and why."""
        return self._done(Result(name, None, 0.0, why), 0)

    def _done(self, result: Result, tail: int) -> Result:
        self.results.append(result)
        if tail:
            for line in lines(self.output(result.name))[-tail:]:
                self.say(line)
        said = f" ({result.note})" if result.note else ""
        self.say(f"-- {result.name}: {result.verdict}, {result.seconds:.1f} s{said}")
        self.after()
        return result


def lines(file: Path) -> list[str]:
    """The lines of a step's output; none where there is no such file."""
    if not file.exists():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()
