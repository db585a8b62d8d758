"""Runs environments in processes of their own, for worlds whose steps take long.

Each worker holds a slice of the environments behind a ``VectorAdapter`` and steps them one after the other. So the
results are bit for bit those of one process. Actions and results travel through shared memory, commands and errors
through pipes. (Gymnasium's AsyncVectorEnv has a process for each environment.)

Processes are forked. So they see the worlds that the running script registered, and they start in milliseconds. Workers
end with the adapter and with the process that made them. When one fails, all of them end.
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
"""The seconds after which a waiting worker looks again whether its parent still lives."""
PATIENCE = 2.0
"""The seconds that workers have to close their environments before they are killed."""


class WorkerAdapter(VectorAdapter):
    """A `VectorAdapter` whose environments live in worker processes.

    One environment is opened in this process, to learn what the world looks like, and closed again. Workers start with
    the first ``reset``.

    Args:
        make: opens a number of environments in the calling process.
        num_envs: the number of environments of all workers together.
        workers: the number of processes; no more are started than there are worlds.

    Raises:
        ValueError: the world cannot be opened, or the platform cannot fork.
    """

    def __init__(self, make: Make, num_envs: int, workers: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"workers is {workers}; expected 0, since processes cannot fork on {sys.platform}")
        probe = make(1)  # in a world with several agents, these are the agents of one copy
        self._make, self._feedback = make, {"action": False, "reward": False}
        self.env, self.name, self.num_envs = probe.env, probe.name, num_envs
        self.obs_size, self.n_actions = probe.obs_size, probe.n_actions
        self.layout, self.notices, self.why_not_resumable = probe.layout, probe.notices, probe.why_not_resumable
        if probe.resumable and not probe.saves_one_by_one:
            self.why_not_resumable = f"{self.name} saves its environments as one, which workers={workers} divide"
        self._probe = probe
        self._slices = _slices(num_envs, probe.num_envs, workers)
        self._columns: dict[str, np.ndarray] = {}
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._end: Callable[[], Any] = lambda: None
        probe.close()

    @property
    def action_names(self) -> list[str]:
        """The names of the actions, as `VectorAdapter.action_names` has them."""
        return self._probe.action_names

    def feed_back(self, *, action: bool, reward: bool) -> None:
        """Append the last action and the last reward to every observation, as `VectorAdapter.feed_back` does."""
        self._probe.feed_back(action=action, reward=reward)
        self._feedback = {"action": action, "reward": reward}
        self.obs_size, self.layout = self._probe.obs_size, self._probe.layout

    def reset(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin a new episode in every environment, as `VectorAdapter.reset` does."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"seeds has length {len(seeds)}; expected num_envs = {self.num_envs}")
        if not self._processes:
            self._start()
        masked = self._ask("reset", [[int(s) for s in seeds[part]] for part in self._slices])
        return self._columns["obs"].copy(), self._columns["legal"].copy() if any(masked) else None

    def step(self, action: np.ndarray) -> WorldStep:
        """Take one step in every environment, as `VectorAdapter.step` does.

        Raises:
            ValueError: as there, and where a worker has died.
        """
        self._columns["action"][:] = action
        answers = self._ask("step", [None] * len(self._slices))
        # all slices of a world give the same columns, except that some give survival only where an episode just ended
        given: Any = {name: self._columns[name].copy() for answer in answers for name in answer["given"]}
        given |= {name: None for name in ("legal", "survival", "idle") if name not in given}
        for name in ("final_obs", "final_legal"):
            parts = [answer[name] for answer in answers if answer[name] is not None]
            given[name] = np.concatenate(parts) if parts else None
        return WorldStep(**given)

    def get_state(self) -> dict[str, Any]:
        """The state in the form of `VectorAdapter.get_state`, which does not depend on the number of workers."""
        self._require_resumable()
        states = self._ask("get_state", [None] * len(self._slices))
        envs = [env for state in states for env in state["envs"]]
        return {"envs": envs, "steps": states[0]["steps"], "over": np.concatenate([s["over"] for s in states])}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``get_state`` was called, as `VectorAdapter.set_state` does."""
        self._require_resumable()
        if len(state["envs"]) != self.num_envs:
            raise ValueError(f"{self.name}: state has {len(state['envs'])} environments; expected {self.num_envs}")
        if not self._processes:
            self._start()
        parts = [{**state, "envs": state["envs"][p], "over": state["over"][p]} for p in self._slices]
        self._ask("set_state", parts)

    def render(self) -> Any:
        """Refuse to draw, which workers cannot do.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name}: cannot be drawn by workers; expected workers = 0")

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
                # Python warns that this process has threads (torch's). The workers use nothing that those may hold.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            its.close()
            self._pipes.append(mine)
            self._processes.append(process)
        self._end = weakref.finalize(self, _end, self._processes, self._pipes)

    def _ask(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Send a command to every worker, and return every worker's answer.

        Raises:
            ValueError: a worker failed, in which case all of them have ended, or none was started.
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
    ends[-1] = num_envs  # the last slice gets the remainder, which the world itself refuses
    return [slice(a, b) for a, b in pairwise(ends)]


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in memory that forked processes share. The memory is freed with the last of them."""
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
    """Carry out commands until one says to close, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, but the parent decides what to do
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:  # a fork does not copy torch's pool of threads
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
            # the message counts the slice's environments from 0
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
