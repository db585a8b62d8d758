"""The buffer's form for a device, on the CPU: the twins of its two compiled loops, and priorities without a wait."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from replay_cases import OBS, A, H, buffer, filled, set_priorities
from torch import Tensor

from townlet import reference
from townlet.learning.replay import SequentialReplayBuffer

P, E = 2, 3


def fields(g: torch.Generator, store_legal: bool, closed: Tensor) -> dict[str, Any]:
    """One random step of all streams; those that an added episode has closed begin anew."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(P, E, *shape, generator=g)

    return {
        "obs": draw(OBS), "reset": (draw() < 0.2) | closed.view(P, E), "legal": draw(A) < 0.7 if store_legal else None,
        "h": draw(H), "c": draw(H), "action": torch.randint(A, (P, E), generator=g), "reward": draw(),
        "terminated": draw() < 0.2, "mask": draw() < 0.9,
    }  # fmt: skip


def play(replay: SequentialReplayBuffer, store_legal: bool, seed: int, steps: int = 40) -> None:
    """Live steps of all streams, final observations of some, every seventh time an added episode as well, and a draw
    whose priorities change."""
    g = torch.Generator().manual_seed(seed)
    for t in range(steps):
        replay.add(**fields(g, store_legal, replay._closed))
        if t % 3 == 1:
            ended = torch.rand(P, E, generator=g) < 0.5
            k = int(ended.sum())
            legal = torch.rand(k, A, generator=g) < 0.5 if store_legal else None
            h, c = torch.rand(2, P, E, H, generator=g)
            replay.add_final(ended, torch.rand(k, OBS, generator=g), legal, h, c)
        if t % 7 == 3:
            n = int(torch.randint(1, replay.ring - 1, (), generator=g))
            legal = torch.rand(n + 1, A, generator=g) < 0.5 if store_legal else None
            obs, reward = torch.rand(n + 1, OBS, generator=g), torch.rand(n, generator=g)
            replay.add_episode(t % P, obs, torch.randint(A, (n,), generator=g), reward, terminated=True, legal=legal)
        if replay.ready and t % 5 == 0:
            sample = replay.sample(4)
            replay.update_priorities(sample, torch.rand(P, 4, generator=g) * 3)


def state(replay: SequentialReplayBuffer) -> dict[str, Tensor]:
    return replay._data | replay._tables()


def on_twins(replay: SequentialReplayBuffer, write: Callable[..., None] = reference.replay_write) -> None:
    """From here on the buffer goes the way of a device."""
    replay._loops = SimpleNamespace(replay_write=write, replay_windows=reference.replay_windows)


CASES = [(3, 2, True, 12), (2, 1, False, 9), (4, 4, True, 8), (3, 3, True, 6)]


def same(case: tuple[int, int, bool, int], write: Callable[..., None] = reference.replay_write) -> bool:
    """Whether a buffer on the twins ends as one on the operators does, samples included."""
    seq_len, stride, store_legal, ring = case
    made: list[SequentialReplayBuffer] = []
    samples = []
    for twins in (False, True):
        arguments: dict[str, Any] = {"stride": stride, "capacity": ring * E, "store_legal": store_legal}
        replay = buffer(P, E, seq_len, prioritised=True, **arguments)
        if twins:
            on_twins(replay, write)
        play(replay, store_legal, seed=ring)
        samples.append(replay.sample(50))
        made.append(replay)
    one, two = (state(r) for r in made)
    held = one["start"] >= 0
    one["priority"], two["priority"] = (v["priority"] * held for v in (one, two))  # what is not held is never read
    equal = [torch.equal(one[name], two[name]) for name in one]
    equal += [a is b is None or torch.equal(a, b) for a, b in zip(*samples, strict=True)]
    return all(equal)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_twins_write_and_read_as_the_operators_do(case: Any) -> None:
    assert same(case)


def swapped(stores: Any, tables: Any, steps: Any, **sizes: Any) -> None:
    """A twin that stores another member's state."""
    reference.replay_write(stores, tables, steps._replace(h=steps.h.roll(1, 0)), **sizes)


def lasting(stores: Any, tables: Any, steps: Any, **sizes: Any) -> None:
    """A twin that forgets to drop the windows it writes over."""
    start = tables.start.clone()
    reference.replay_write(stores, tables, steps, **sizes)
    tables.start.copy_(torch.where(tables.start < 0, start, tables.start))


@pytest.mark.parametrize("write", [swapped, lasting])
def test_a_broken_twin_is_seen(write: Callable[..., None]) -> None:
    assert not same(CASES[0], write)


@pytest.mark.parametrize(("seq_len", "stride", "ring"), [(3, 2, 4), (3, 1, 4), (5, 2, 6), (3, 3, 9), (1, 1, 2)])
def test_how_many_windows_are_held_follows_from_the_counts(seq_len: int, stride: int, ring: int) -> None:
    replay = buffer(1, 2, seq_len, stride=stride, capacity=2 * ring)
    seen = set()
    for t in range(3 * ring):
        one = {"obs": torch.zeros(1, 2, OBS), "reset": torch.ones(1, 2) > 0, "legal": None}
        one |= {"h": torch.zeros(1, 2, H), "c": torch.zeros(1, 2, H), "action": torch.zeros(1, 2).long()}
        replay.add(**one, reward=torch.zeros(1, 2), terminated=torch.zeros(1, 2) > 0, mask=torch.ones(1, 2) > 0)
        if t % ring == 2 and ring > 2:
            replay.add_episode(0, torch.zeros(3, OBS), [0, 0], [0.0, 0.0], terminated=True, env=1)
        assert torch.equal(replay.windows, (replay._start.view(1, -1) >= 0).sum(1))
        seen.add(int(replay.windows))
    assert len(seen) > 1


@pytest.mark.parametrize("twin", [False, True], ids=["operator", "twin"])
def test_the_faults_of_a_step_are_named_by_the_operator_and_by_the_twin(twin: bool) -> None:
    replay = buffer(P, E)
    if twin:
        on_twins(replay)
    g = torch.Generator().manual_seed(0)
    step = fields(g, True, replay._closed)
    step["obs"][1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"obs holds NaN or infinity, first at \[1, 2, 0\]"):
        replay.add(**step)
    replay.add_episode(1, torch.zeros(3, OBS), [0, 1], [0.0, 0.0], terminated=True, env=2)
    closed = "reset is False in a stream .*, that of member 1 and environment 2; expected True"
    state = torch.zeros(P, E, H)
    with pytest.raises(ValueError, match=closed):
        replay.add_final(torch.arange(P * E).view(P, E) == 5, torch.zeros(1, OBS), None, state, state)
    with pytest.raises(ValueError, match=closed):
        replay.add(**fields(g, True, torch.zeros(P, E, dtype=torch.bool)) | {"reset": torch.zeros(P, E) > 0})
    assert int(replay._count.sum()) == 3


def test_priorities_written_on_the_device_are_those_written_on_the_host() -> None:
    one, two = filled(True, members=2), filled(True, members=2)
    for replay in (one, two):
        set_priorities(replay, torch.arange(10.0))
    for t in range(8):
        samples = [replay.sample(16) for replay in (one, two)]
        if t == 4:
            for replay in (one, two):  # a slot gets another occupant
                replay._start[3] += 1000
        value = samples[0].start.float() + t * 7
        one.update_priorities(samples[0], value)
        two.update_priorities(samples[1], value, torch.tensor(True))
        assert torch.equal(one._priority, two._priority)
        assert torch.equal(one._max_priority, two._max_priority)
    before = two._priority.clone(), two._max_priority.clone()
    two.update_priorities(two.sample(16), torch.full((2, 16), float("nan")), torch.tensor(False))
    assert torch.equal(before[0], two._priority)
    assert torch.equal(before[1], two._max_priority)
    two.update_priorities(two.sample(16), torch.full((2, 16), 1e6), torch.tensor(True))  # control
    assert not torch.equal(before[0], two._priority)
