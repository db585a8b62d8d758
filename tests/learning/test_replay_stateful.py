"""Replay under any sequence of calls, against a model of plain lists that never forgets anything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from replay_cases import OBS, A, H, buffer

from townlet import _C
from townlet.learning.replay import REPLAY_STREAM, SequentialReplayBuffer
from townlet.learning.sampling import PRIORITY_FLOOR, ReplaySample
from townlet.reference import valid_transitions
from townlet.runs import checkpoint

P, E, B, ALPHA, BETA = 2, 2, 5, 0.6, 0.4
PER_STEP = ("obs", "reset", "legal", "action", "reward", "terminated", "mask")


class Stream:
    """Everything that one environment ever stored, and the priority of every window that was ever complete."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.priority: dict[int, float] = {}
        self.must_reset = True

    def windows(self, seq_len: int, stride: int, ring: int) -> list[int]:
        """Starts of those whose S + 1 steps are all among the last ``ring`` ones."""
        n = len(self.steps)
        return [s for s in range(0, n - seq_len, stride) if s >= n - ring]


class Replay(RuleBasedStateMachine):
    """The buffer and the lists, call by call."""

    make = staticmethod(buffer)

    @initialize(
        seq_len=st.integers(1, 5),
        stride=st.integers(1, 5),
        rings=st.integers(0, 6),
        prioritised=st.sampled_from([True, True, False]),
    )
    def begin(self, seq_len: int, stride: int, rings: int, prioritised: bool) -> None:
        self.S, self.stride = seq_len, min(stride, seq_len)
        self.ring = (-(-(seq_len + 1) // self.stride) + rings) * self.stride
        self.arguments = {"seq_len": seq_len, "stride": self.stride, "capacity": self.ring * E}
        self.arguments |= {"prioritised": prioritised, "alpha": ALPHA, "beta": BETA}
        self.replay: SequentialReplayBuffer = self.make(P, E, **self.arguments)
        self.streams = [[Stream() for _ in range(E)] for _ in range(P)]
        self.highest, self.samples, self.clock = [1.0] * P, 0, 0
        self.sampled: list[ReplaySample] = []

    # ---- the model --------------------------------------------------------------------------------------------------

    def numbered(self, *lead: int) -> dict[str, Any]:
        """Steps whose every number tells when it was made, and flags by chance of that number."""
        n = int(np.prod(lead))
        ids = np.arange(self.clock, self.clock + n, dtype=np.float32).reshape(lead)
        self.clock += n
        rng = np.random.default_rng(self.clock)
        flags = {name: rng.random(lead) < share for name, share in (("terminated", 0.2), ("mask", 0.8), ("reset", 0.2))}
        wide = {"obs": OBS, "h": H, "c": H}
        values = {name: torch.from_numpy(np.repeat(ids[..., None], k, -1)) for name, k in wide.items()}
        values["c"] = -values["c"]
        return {
            **values,
            **flags,
            "action": ids.astype(np.int64) % A,
            "reward": ids,
            "legal": rng.random((*lead, A)) < 0.7,
        }

    def remember(self, p: int, e: int, fields: dict[str, Any], *index: int) -> None:
        stream = self.streams[p][e]
        stream.steps.append({name: np.asarray(v[index]).tolist() for name, v in fields.items()})
        complete = len(stream.steps) - 1 - self.S
        if complete >= 0 and complete % self.stride == 0:
            stream.priority[complete] = self.highest[p]

    def held(self, p: int) -> list[tuple[int, int]]:
        """(environment, start) of the member's windows, in the order of their slots."""
        found = [(e, s) for e in range(E) for s in self.streams[p][e].windows(self.S, self.stride, self.ring)]
        return sorted(found, key=lambda w: self.slot(*w))

    def slot(self, e: int, start: int) -> int:
        return e * (self.ring // self.stride) + start % self.ring // self.stride

    def ready(self) -> bool:
        return all(self.held(p) for p in range(P))

    # ---- calls ------------------------------------------------------------------------------------------------------

    @rule(n=st.integers(1, 12))
    def add(self, n: int) -> None:
        for _ in range(n):
            fields = self.numbered(P, E)
            fields["reset"] |= np.array([[s.must_reset for s in row] for row in self.streams])
            self.replay.add(**fields)
            for p in range(P):
                for e in range(E):
                    self.streams[p][e].must_reset = False
                    self.remember(p, e, fields, p, e)

    @rule(p=st.integers(0, P - 1), e=st.integers(0, E - 1), n=st.integers(1, 5), terminated=st.booleans())
    def add_episode(self, p: int, e: int, n: int, terminated: bool) -> None:
        n = min(n, self.ring - 1)
        f = self.numbered(n + 1)
        given = (f["obs"], f["action"][:n], f["reward"][:n])
        states = {"legal": f["legal"], "h": f["h"], "c": f["c"]}
        self.replay.add_episode(p, *given, terminated=terminated, env=e, **states)
        t = np.arange(n + 1)
        f |= {"reset": t == 0, "mask": t < n, "terminated": (t == n - 1) & terminated}
        f |= {"action": np.where(t < n, f["action"], 0), "reward": np.where(t < n, f["reward"], 0)}
        for i in range(n + 1):
            self.remember(p, e, f, i)
        self.streams[p][e].must_reset = True

    @precondition(lambda self: self.ready())
    @rule(scale=st.sampled_from([0.0, 0.5, 3.0]))
    def sample_and_learn(self, scale: float) -> None:
        self.sample()
        self.update_priorities(len(self.sampled) - 1, scale)

    @precondition(lambda self: self.ready())
    @rule()
    def sample(self) -> None:
        sample = self.replay.sample(B)
        draws = _C.philox_uniform(np.asarray(self.replay.seeds, dtype=np.uint64), REPLAY_STREAM, self.samples, B)
        self.samples += 1
        for p in range(P):
            held = self.held(p)
            mass = np.ones(len(held))
            if self.replay.prioritised:
                mass = (np.array([self.streams[p][e].priority[s] for e, s in held]) + PRIORITY_FLOOR) ** ALPHA
            chosen = np.searchsorted(mass.cumsum(), draws[p] * mass.sum(), side="right")
            weight = (len(held) * mass[chosen] / mass.sum()) ** (-BETA if self.replay.prioritised else 0)
            np.testing.assert_allclose(sample.weight[p], weight / weight.max(), rtol=1e-5)  # observed 6e-8
            for b, (e, s) in enumerate(held[k] for k in chosen):
                assert (int(sample.slot[p, b]), int(sample.start[p, b])) == (self.slot(e, s), s)
                steps = self.streams[p][e].steps[s : s + self.S + 1]
                for name in PER_STEP:
                    rows = getattr(sample, name)[p, b].tolist()
                    assert rows == [step[name] for step in steps[: len(rows)]], name
                    assert len(rows) == self.S + (name in ("obs", "reset", "legal"))
                assert sample.h0[p, b].tolist() == steps[0]["h"]
                assert sample.c0[p, b].tolist() == steps[0]["c"]
                self.check_validity(valid_transitions(sample)[p, b].tolist(), steps)  # type: ignore[arg-type]
        self.sampled.append(sample)

    def check_validity(self, valid: list[bool], steps: list[dict[str, Any]]) -> None:
        """A transition counts when it was real, and what follows it is its successor or will not be read."""
        for t, (now, then) in enumerate(itertools.pairwise(steps)):
            assert valid[t] == (now["mask"] and (now["terminated"] or not then["reset"]))

    @precondition(lambda self: self.sampled)
    @rule(which=st.integers(0, 99), scale=st.sampled_from([0.0, 0.5, 3.0]))
    def update_priorities(self, which: int, scale: float) -> None:
        """Also of samples from long ago, whose windows may be gone."""
        sample = self.sampled[which % len(self.sampled)]
        new = scale * (1 + sample.start.double() % 7) + sample.slot  # the same for a window that was drawn twice
        self.replay.update_priorities(sample, new)
        for p in range(P):
            held = set(self.held(p))
            for e in range(E):
                for b in range(B):
                    s = int(sample.start[p, b])
                    if (e, s) in held and self.slot(e, s) == int(sample.slot[p, b]):
                        self.streams[p][e].priority[s] = float(new[p, b])
            self.highest[p] = max(self.highest[p], float(new[p].max()))

    @precondition(lambda self: self.sampled)
    @rule(bad=st.sampled_from([float("nan"), float("inf"), -1.0]))
    def refused_priorities(self, bad: float) -> None:
        priority = torch.ones(P, B)
        priority[1, B - 1] = bad
        with pytest.raises(ValueError, match=r"priority of member \[1\]"):
            self.replay.update_priorities(self.sampled[-1], priority)

    @rule(bad=st.sampled_from([float("nan"), float("inf")]), p=st.integers(0, P - 1), e=st.integers(0, E - 1))
    def refused_step(self, bad: float, p: int, e: int) -> None:
        fields = self.numbered(P, E)
        fields["reset"][:] = True
        fields["obs"][p, e, 0] = bad
        with pytest.raises(ValueError, match="obs holds NaN or infinity"):
            self.replay.add(**fields)

    @rule()
    def save_and_load(self) -> None:
        """What a checkpoint holds, into a new buffer that has held other things."""
        tree = checkpoint._restored(checkpoint._plain(self.replay.state_dict()))
        other = self.make(P, E, **self.arguments)
        other.add(**{**self.numbered(P, E), "reset": np.ones((P, E), dtype=bool)})
        other.load_state_dict(tree)
        self.replay = other

    # ---- always -----------------------------------------------------------------------------------------------------

    @invariant()
    def counts(self) -> None:
        held = [self.held(p) for p in range(P)]
        assert self.replay.windows.tolist() == [len(w) for w in held]
        assert self.replay.ready == self.ready()
        assert (self.replay.missing() == "") == self.ready()
        assert len(self.replay) == min(sum(min(len(s.steps), self.ring) for s in row) for row in self.streams)

    @invariant()
    def refuses_what_must_open_an_episode(self) -> None:
        if any(s.must_reset and s.steps for row in self.streams for s in row):
            fields = {**self.numbered(P, E), "reset": np.zeros((P, E), dtype=bool)}
            with pytest.raises(ValueError, match="reset is False"):
                self.replay.add(**fields)


QUICK = settings(max_examples=60, stateful_step_count=25, deadline=None)
ONCE = settings(QUICK, max_examples=200, phases=[Phase.generate], derandomize=True, database=None, print_blob=False)


def test_any_sequence_of_calls() -> None:
    run_state_machine_as_test(Replay, settings=QUICK)


def broken(**methods: Any) -> type[Replay]:
    """The machine around a buffer that has a mistake."""

    class Broken(Replay):
        @staticmethod
        def make(*args: Any, **options: Any) -> SequentialReplayBuffer:
            made = buffer(*args, **options)
            made.__class__ = type("Broken", (SequentialReplayBuffer,), methods)
            return made

    return Broken


def _keeps_stale(self: Any, sample: ReplaySample, priority: torch.Tensor, good: Any = None) -> None:
    now = self._start.view(P, -1).gather(1, sample.slot)
    SequentialReplayBuffer.update_priorities(self, sample._replace(start=now), priority)


def _forgets_the_highest(self: Any, sample: ReplaySample, priority: torch.Tensor, good: Any = None) -> None:
    SequentialReplayBuffer.update_priorities(self, sample, priority)
    self._max_priority.fill_(1.0)


def _without(name: str) -> Any:
    def load(self: Any, state: Any) -> None:
        SequentialReplayBuffer.load_state_dict(self, {**state, name: getattr(self, f"_{name}")})

    return load


def _changed(**fields: Any) -> Any:
    def windows_at(self: Any, draws: torch.Tensor) -> ReplaySample:
        sample = SequentialReplayBuffer.windows_at(self, draws)
        return sample._replace(**{name: change(sample) for name, change in fields.items()})

    return windows_at


MISTAKES = {
    "priorities go to whatever took the window's place": {"update_priorities": _keeps_stale},
    "new windows do not get the highest priority": {"update_priorities": _forgets_the_highest},
    "the checkpoint loses priorities": {"load_state_dict": _without("priority")},
    "the checkpoint loses what must open an episode": {"load_state_dict": _without("closed")},
    "the checkpoint loses the count of samples": {"load_state_dict": _without("samples")},
    "the state after the first observation": {"windows_at": _changed(h0=lambda s: s.h0 + 1)},
    "resets one step late": {"windows_at": _changed(reset=lambda s: s.reset.roll(1, -1))},
    "masks one step early": {"windows_at": _changed(mask=lambda s: s.mask.roll(-1, -1))},
    "weights are not divided by the largest": {"windows_at": _changed(weight=lambda s: s.weight * 2)},
    "a window runs into what was written over it": {"windows_at": _changed(obs=lambda s: s.obs.roll(1, -2))},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_model_finds(mistake: str) -> None:
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception, BaseExceptionGroup)):
        run_state_machine_as_test(broken(**MISTAKES[mistake]), settings=ONCE)
