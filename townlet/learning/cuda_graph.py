"""A step over fixed tensors, recorded as a CUDA graph and replayed: one launch in place of some hundreds.

A recording holds addresses and numbers, no Python. So the step has to read everything that changes from tensors that
stay where they are, and whoever changes a plain number that it uses records anew (`forget`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[], dict[str, Tensor]]

WARM_UP = 3
"""Calls as they stand before one is recorded: libraries choose algorithms and reserve workspace in them."""


class Recorder(Protocol):
    """How steps are recorded: `CudaRecorder`; tests have one for the CPU."""

    def run(self, step: Step) -> dict[str, Tensor]: ...

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]: ...


class CudaRecorder:
    """Warm-up and capture on a stream of their own, as `torch.cuda.graph` wants them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, step: Step) -> dict[str, Tensor]:
        """The step as it stands."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            out = step()
        caller.wait_stream(self.stream)
        return out

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]:
        """Captures the step and replays it once: its results, and what replays it into the same tensors.

        Where the capture fails, the caller's stream is current again: `torch.cuda.graph` alone leaves its own stream
        current when the beginning or the end of a capture raises, so a context around it puts the stream back.
        """
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            out = step()
        graph.replay()
        return out, graph.replay


class Replayed:
    """Runs steps: each a few times as it stands, then from a recording of it.

    A step that cannot be recorded runs as it stands from then on, which is said once.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[dict[str, Tensor], Callable[[], object]]] = {}
        self.refused: str | None = None  # why nothing can be recorded

    def run(self, key: Hashable, step: Step) -> dict[str, Tensor]:
        """One call of `step`; equal keys mean the same step. The results are the caller's own."""
        runs = self._runs.get(key, 0)
        self._runs[key] = runs + 1
        if self.refused is not None or runs < WARM_UP:
            return self._recorder.run(step)
        if key in self._recorded:
            out, replay = self._recorded[key]
            replay()
        else:
            try:
                self._recorded[key] = self._recorder.record(step)
            except RuntimeError as error:
                self.refused = str(error).splitlines()[0]
                warnings.warn(f"townlet: the update runs without a CUDA graph: {self.refused}", stacklevel=2)
                return self._recorder.run(step)
            out, _ = self._recorded[key]
        return {name: value.clone() for name, value in out.items()}

    def forget(self) -> None:
        """Drops all recordings: something that they hold as a number has changed."""
        self._runs.clear()
        self._recorded.clear()
