"""The recorded update, without a GPU: the recorder for the CPU of `tape` stands in its place.

Whatever the update takes from Python is as old as the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from learners import make, state_of
from tape import TapeRecorder
from torch import Tensor

from townlet.learning.cuda_graph import WARM_UP, CudaRecorder, Replayed, Step
from townlet.learning.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pair(**arguments: Any) -> tuple[Learner, Learner, TapeRecorder]:
    """The same learner twice: as it stands, and recorded."""
    plain, recorded = (make([1, 2], deferred=True, **arguments) for _ in range(2))
    recorder = TapeRecorder()
    recorded.replayed = Replayed(recorder)
    return plain, recorded, recorder


def follow(plain: Learner, recorded: Learner, between: Callable[[Learner, int], None], updates: int = 14) -> bool:
    """Whether both do the same in every bit."""
    for n in range(updates):
        metrics = []
        for learner in (plain, recorded):
            between(learner, n)
            metrics.append(learner.update())
        if not all(torch.equal(a, b) for a, b in zip(metrics[0].values(), metrics[1].values(), strict=True)):
            return False
    tables = [learner.replay._priority for learner in (plain, recorded)]
    pairs = [*zip(state_of(plain), state_of(recorded), strict=True), tables]
    return all(torch.equal(a, b) for a, b in pairs)


def falling_rate(learner: Learner, n: int) -> None:
    learner.population.lr.fill_(1e-2 * 0.9**n)


VARIANTS = [
    {},
    {"tau": 0.3, "sync_every": 1},
    {"use_target": False},
    {"memory": False},
    {"prioritised": False},
    {"spec": {"rescale_eps": 1e-3, "loss": "mse", "double_q": False}},
]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_replayed_updates_are_the_updates(arguments: dict[str, Any]) -> None:
    plain, recorded, recorder = pair(**arguments)
    assert follow(plain, recorded, falling_rate)
    keys = 1 if arguments.get("use_target") is False or arguments.get("sync_every") == 1 else 2
    assert recorder.replays == 14 - keys * (WARM_UP + 1)
    recorded.population.check()
    assert int(recorded.population.adam_steps) == 14
    # acting sees that weights have changed, though a replay does not count versions by itself
    obs, none = torch.rand(2, 4, 5), torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(*(learner.population.act(obs, none) for learner in (plain, recorded)))
    assert torch.equal(*(learner.population.state[0] for learner in (plain, recorded)))


def test_a_changed_number_is_recorded_anew() -> None:
    def annealed(learner: Learner, n: int) -> None:
        if n == 10:
            learner.replay.beta = 0.9

    assert follow(*pair()[:2], annealed)
    plain, recorded, _ = pair()
    assert recorded.replayed is not None
    recorded.replayed.forget = lambda: None  # type: ignore[method-assign]  # control: the old number stays
    assert not follow(plain, recorded, annealed)


def test_another_rate_tensor_is_recorded_anew() -> None:
    def replaced(learner: Learner, n: int) -> None:
        learner.population.lr = torch.full((2,), 1e-2 if n < 10 else 1e-4)

    assert follow(*pair()[:2], replaced)


def test_what_python_hands_in_is_as_old_as_the_recording() -> None:
    """Control: draws that do not pass through the tensor that a recording reads are drawn once and for ever."""
    plain, recorded, _ = pair()
    replayed = recorded.replayed
    assert replayed is not None
    recorded._replay = lambda draws, syncs, _: replayed.run(syncs, lambda: recorded._step(draws, syncs))  # type: ignore[method-assign]
    assert not follow(plain, recorded, falling_rate)


def test_a_loaded_state_reaches_the_recording() -> None:
    plain, recorded, recorder = pair()
    assert follow(plain, recorded, falling_rate)
    other = make([1, 2], deferred=True, lr=3e-3)
    for _ in range(5):
        other.update()
    for learner in (plain, recorded):
        for part in ("population", "replay"):
            getattr(learner, part).load_state_dict(getattr(other, part).state_dict())
    before = recorder.replays
    assert follow(plain, recorded, lambda learner, n: None)
    assert recorder.replays == before + 14  # none was recorded anew


def test_a_step_that_cannot_be_recorded_runs_as_it_stands_and_says_so() -> None:
    plain, recorded, recorder = pair()

    def refuse(step: Step) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    recorder.record = refuse  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match="runs without a CUDA graph: operation not permitted when stream is capturing$"
    ):
        assert follow(plain, recorded, falling_rate)


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="graph is True; expected False, since the population is on cpu"):
        make([1], graph=True)


class FakeStream(NamedTuple):
    name: str
    device: torch.device = torch.device("cuda", 0)


CALLERS, RECORDERS = FakeStream("the caller's"), FakeStream("the recorder's")


class FakeCuda:
    """`torch.cuda` as far as a recording goes: which stream is current, and a graph that fails where it is told to.

    The contexts `torch.cuda.graph` and `torch.cuda.stream` are torch's own.
    """

    def __init__(self, patch: pytest.MonkeyPatch, fails: str) -> None:
        self.current, self.fails = CALLERS, fails
        self.ran: list[FakeStream] = []  # the streams on which the step or a replay ran
        instead = {
            "synchronize": lambda: None, "empty_cache": lambda: None, "device": lambda device: nullcontext(),
            "_get_device_index": lambda device, optional: 0, "current_stream": lambda device: self.current,
            "set_stream": lambda stream: setattr(self, "current", stream), "CUDAGraph": lambda: self,
        }  # fmt: skip
        for name, value in instead.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    def step(self) -> dict[str, Tensor]:
        self.ran.append(self.current)
        if self.fails == "step":
            raise RuntimeError("the step fails")
        return {}

    def capture_begin(self, *pool: Any, **how: Any) -> None:
        if self.fails == "capture_begin":
            raise RuntimeError("the beginning fails")

    def capture_end(self) -> None:
        assert self.current == RECORDERS, "a capture ends on the stream where it began"
        if self.fails in ("capture_end", "step"):
            raise RuntimeError("the end fails")

    def replay(self) -> None:
        self.ran.append(self.current)


@pytest.fixture
def recorder() -> CudaRecorder:
    out = CudaRecorder.__new__(CudaRecorder)  # without a GPU, which has the streams
    out.device, out.stream, out.pool = RECORDERS.device, RECORDERS, (0, 1)  # type: ignore[assignment]
    return out


@pytest.mark.parametrize("fails", ["capture_begin", "step", "capture_end"])
def test_where_a_capture_fails_the_callers_stream_is_current_again(
    fails: str, recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch, fails)
    with pytest.raises(RuntimeError, match=r"the (beginning|end) fails"):
        recorder.record(cuda.step)
    assert cuda.current == CALLERS
    # control: torch's own context leaves another one current
    with pytest.raises(RuntimeError), torch.cuda.graph(cuda, pool=(0, 1), stream=RECORDERS):  # type: ignore[arg-type]
        cuda.step()
    assert cuda.current == RECORDERS


def test_a_capture_runs_on_the_recorders_stream_and_is_replayed_on_the_callers(
    recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch, "")
    recorder.record(cuda.step)
    assert cuda.ran == [RECORDERS, CALLERS]
    assert cuda.current == CALLERS
