"""Records a step over fixed tensors as a CUDA graph and replays it, with one launch in place of some hundreds.

A recording holds addresses and numbers, but no Python. So the step has to read everything that changes from tensors
that stay where they are. Whoever changes a plain number that the step uses has to call `Replayed.forget`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[], dict[str, Tensor]]

WARM_UP = 3
"""The number of plain calls before one is recorded. In them libraries choose algorithms and reserve workspace."""


class Recorder(Protocol):
    """What records steps: `CudaRecorder`, or a stand-in for the CPU in tests."""

    def run(self, step: Step) -> dict[str, Tensor]: ...

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]: ...


class CudaRecorder:
    """Warms up and captures on a stream of its own, as `torch.cuda.graph` wants it.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, step: Step) -> dict[str, Tensor]:
        """Run the step without a recording, and return its results."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            out = step()
        caller.wait_stream(self.stream)
        return out

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]:
        """Capture the step, and replay it once.

        The caller's stream is current again even where the capture fails. `torch.cuda.graph` alone leaves its own
        stream current when the beginning or the end of a capture raises, so a context around it puts the stream back.

        Returns:
            The results, and a function that replays the step into the same tensors.

        Raises:
            RuntimeError: the step cannot be captured.
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
    """Runs steps: each a few times as it stands, and from then on by a recording of it.

    When a step cannot be recorded, one warning says so, and from then on every step runs as it stands.

    Args:
        recorder: records the steps.

    Attributes:
        refused: the reason why nothing can be recorded; None where nothing has failed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[dict[str, Tensor], Callable[[], object]]] = {}
        self.refused: str | None = None

    def run(self, key: Hashable, step: Step) -> dict[str, Tensor]:
        """Call a step once.

        Args:
            key: identifies the step; equal keys mean the same step.
            step: the step, which returns tensors by name.

        Returns:
            The results, which no later call overwrites.
        """
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
        """Drop all recordings, since something that they hold as a number has changed."""
        self._runs.clear()
        self._recorded.clear()
