"""Environments in processes of their own, for worlds whose steps take long.

Each worker holds a slice of the environments behind a ``VectorAdapter`` and steps them one after the other, so results
are bit for bit those of one process. Actions and results travel through shared memory, commands and errors through
pipes. (Gymnasium's AsyncVectorEnv has a process for each environment.)

Processes are forked: they see worlds that were registered by the script that runs, and cost milliseconds to start.
Workers end with the adapter, with the process that made them, and all of them when one fails.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .adapter import VectorAdapter, WorldStep

Make = Callable[[int], VectorAdapter]

HEARTBEAT = 1.0
"""Seconds between a waiting worker's looks at whether its parent still lives."""
PATIENCE = 2.0
"""Seconds that workers have to close their environments before they are killed."""


class WorkerAdapter(VectorAdapter):
    """The face of `VectorAdapter` before environments that live in worker processes.

    Args:
        make: opens a number of environments in the calling process.
        num_envs: of all workers together.
        workers: processes; no more are started than there are worlds.

    One environment is opened in this process, to learn what the world looks like, and closed again. Workers start with
    the first ``reset``.

    Raises:
        ValueError: ``make`` does, or the platform cannot fork.
    """

    def __init__(self, make: Make, num_envs: int, workers: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"workers is {workers}; expected 0, since processes cannot fork on {sys.platform}")
        probe = make(1)  # all agents of one copy, where it is such a world
        self._make, self._feedback = make, {"action": False, "reward": False}
        self.env, self.name, self.num_envs = probe.env, probe.name, num_envs
        self.obs_size, self.n_actions = probe.obs_size, probe.n_actions
        self.layout, self.notices, self.why_not_resumable = probe.layout, probe.notices, probe.why_not_resumable
        if probe._singles is None and probe.resumable:
            self.why_not_resumable = f"{self.name} saves all of its environments as one, which workers={workers} divide"
        self._probe = probe
        self._slices = _slices(num_envs, probe.num_envs, workers)
        self._columns: dict[str, np.ndarray] = {}
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._end: Callable[[], Any] = lambda: None
        probe.close()

    def feed_back(self, *, action: bool, reward: bool) -> None:
        """As `VectorAdapter.feed_back`."""
        self._probe.feed_back(action=action, reward=reward)
        self._feedback = {"action": action, "reward": reward}
        self.obs_size, self.layout = self._probe.obs_size, self._probe.layout

    def reset(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """As `VectorAdapter.reset`."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"seeds has length {len(seeds)}; expected num_envs = {self.num_envs}")
        if not self._processes:
            self._start()
        masked = self._ask("reset", [[int(s) for s in seeds[part]] for part in self._slices])
        return self._columns["obs"].copy(), self._columns["legal"].copy() if any(masked) else None

    def step(self, action: np.ndarray) -> WorldStep:
        """As `VectorAdapter.step`.

        Raises:
            ValueError: as there, and when a worker died.
        """
        self._columns["action"][:] = action
        answers = self._ask("step", [None] * len(self._slices))
        # a world's nature decides what it gives, but some give survival only where an episode has just ended
        given: Any = {name: self._columns[name].copy() for answer in answers for name in answer["given"]}
        given |= {name: None for name in ("legal", "survival", "idle") if name not in given}
        for name in ("final_obs", "final_legal"):
            parts = [answer[name] for answer in answers if answer[name] is not None]
            given[name] = np.concatenate(parts) if parts else None
        return WorldStep(**given)

    def get_state(self) -> dict[str, Any]:
        """As `VectorAdapter.get_state`, and in the same form: it does not matter how many workers there were."""
        self._require_resumable()
        states = self._ask("get_state", [None] * len(self._slices))
        envs = [env for state in states for env in state["envs"]]
        return {"envs": envs, "steps": states[0]["steps"], "over": np.concatenate([s["over"] for s in states])}

    def set_state(self, state: dict[str, Any]) -> None:
        """As `VectorAdapter.set_state`."""
        self._require_resumable()
        if len(state["envs"]) != self.num_envs:
            raise ValueError(f"{self.name}: state has {len(state['envs'])} environments; expected {self.num_envs}")
        if not self._processes:
            self._start()
        parts = [{**state, "envs": state["envs"][p], "over": state["over"][p]} for p in self._slices]
        self._ask("set_state", parts)

    def render(self) -> Any:
        """Workers do not draw.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name}: cannot be drawn by workers; expected workers=0")

    def close(self) -> None:
        """End the workers."""
        self._end()

    # ---- processes --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        N = self.num_envs
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "action": ((N,), np.int64),
            "obs": ((N, self.obs_size), np.float32),
            "reward": ((N,), np.float32),
            "terminated": ((N,), np.bool_),
            "truncated": ((N,), np.bool_),
            "legal": ((N, self.n_actions), np.bool_),
            "survival": ((N,), np.float64),
            "first": ((N,), np.bool_),
            "idle": ((N,), np.bool_),
        }
        self._columns = {name: _shared(shape, dtype) for name, (shape, dtype) in shapes.items()}
        context = multiprocessing.get_context("fork")
        for i, part in enumerate(self._slices):
            mine, its = context.Pipe()
            columns = {name: column[part] for name, column in self._columns.items()}
            arguments = (its, self._make, self._feedback, columns, part.start, os.getpid())
            process = context.Process(target=_work, args=arguments, name=f"townlet-worker-{i}", daemon=True)
            with warnings.catch_warnings():
                # that this process has threads (torch's) is known: workers use none of what they may hold
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            its.close()
            self._pipes.append(mine)
            self._processes.append(process)
        self._end = weakref.finalize(self, _end, self._processes, self._pipes)

    def _ask(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Every worker's answer.

        Raises:
            ValueError: a worker failed; all of them have ended then.
        """
        if not self._processes:
            raise ValueError(f"{self.name}: workers do not run; expected reset before {command}")
        try:
            for i, (pipe, argument) in enumerate(zip(self._pipes, arguments, strict=True)):
                try:
                    pipe.send((command, argument))
                except OSError:
                    raise self._death(i) from None
            answers = [self._answer(i) for i in range(len(self._pipes))]
        except BaseException:
            self.close()
            raise
        return answers

    def _answer(self, i: int) -> Any:
        try:
            done, value = self._pipes[i].recv()
        except (EOFError, OSError):
            raise self._death(i) from None
        if not done:
            raise ValueError(value)
        return value

    def _death(self, i: int) -> ValueError:
        self._processes[i].join(PATIENCE)
        code, part = self._processes[i].exitcode, self._slices[i]
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended ({code})"
        return ValueError(f"{self.name}: worker {i}, with environments {part.start} to {part.stop - 1}, {how}")


def _slices(num_envs: int, unit: int, workers: int) -> list[slice]:
    """Parts of 0..num_envs-1 of nearly the same length, each a multiple of ``unit``."""
    worlds = num_envs // unit
    ends = [worlds * i // min(workers, worlds) * unit for i in range(min(workers, worlds) + 1)]
    ends[-1] = num_envs  # what is left over is for the world to refuse
    return [slice(a, b) for a, b in pairwise(ends)]


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in memory that forked processes share; it goes with the last of them."""
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.ndarray(shape, dtype, buffer=mmap.mmap(-1, size))


def _end(processes: list[Any], pipes: list[Connection]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.send(("close", None))
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in pipes:
        pipe.close()
    processes.clear()
    pipes.clear()


# ---- in the worker --------------------------------------------------------------------------------------------------


def _work(
    pipe: Connection, make: Make, feedback: dict[str, bool], columns: dict[str, np.ndarray], start: int, parent: int
) -> None:
    """Carry out commands until told to close, or until nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides what comes of it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:  # its pool of threads stayed behind in the parent
        sys.modules["torch"].set_num_threads(1)
    adapter: VectorAdapter | None = None
    while True:
        while not pipe.poll(HEARTBEAT):
            if os.getppid() != parent:
                return
        try:
            command, argument = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if adapter is None:
                adapter = make(len(columns["action"]))
                adapter.feed_back(**feedback)
            if command == "close":
                adapter.close()
                return
            answer = _carry_out(adapter, command, argument, columns)
        except Exception as error:
            text = str(error) if isinstance(error, ValueError) else f"{adapter.name if adapter else ''}: {error!r}"
            # the slice counts its environments from 0
            pipe.send(
                (False, re.sub(r"\benvironment (\d+)", lambda m: f"environment {start + int(m[1])}", text, count=1))
            )
            continue
        pipe.send((True, answer))


def _carry_out(adapter: VectorAdapter, command: str, argument: Any, columns: dict[str, np.ndarray]) -> Any:
    if command == "reset":
        columns["obs"][:], legal = adapter.reset(argument)
        if legal is not None:
            columns["legal"][:] = legal
        return legal is not None
    if command == "step":
        step = adapter.step(columns["action"].copy())._asdict()
        finals = {name: step.pop(name) for name in ("final_obs", "final_legal")}
        for name, value in step.items():
            columns[name][:] = 0 if value is None else value
        return {"given": [name for name, value in step.items() if value is not None], **finals}
    return getattr(adapter, command)(*(() if argument is None else (argument,)))
