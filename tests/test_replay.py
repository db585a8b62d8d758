"""Replay: streams against a list-based twin, hand-computed windows, sampling laws, ring, errors, checkpoints."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from townlet import replay as replay_module
from townlet.reference import valid_transitions
from townlet.replay import ReplaySample, SequentialReplayBuffer

OBS, A, H = 2, 3, 2


def buffer(members: int = 1, num_envs: int = 1, seq_len: int = 3, **arguments: Any) -> SequentialReplayBuffer:
    arguments = {"capacity": 60 * num_envs, "seeds": list(range(5, 5 + members))} | arguments
    return SequentialReplayBuffer(
        members=members, num_envs=num_envs, obs_size=OBS, n_actions=A, hidden_size=H, seq_len=seq_len, **arguments
    )


def step(value: float, shape: tuple[int, int] = (1, 1), **fields: Any) -> dict[str, Any]:
    """One step of every stream, whose fields all tell `value` unless said otherwise."""
    full = torch.full(shape, float(value))
    out: dict[str, Any] = {
        "obs": full.unsqueeze(-1).expand(*shape, OBS),
        "reset": torch.zeros(shape, dtype=torch.bool),
        "legal": None,
        "h": full.unsqueeze(-1).expand(*shape, H) + 0.25,
        "c": full.unsqueeze(-1).expand(*shape, H) + 0.5,
        "action": torch.full(shape, int(value) % A),
        "reward": full,
        "terminated": torch.zeros(shape, dtype=torch.bool),
        "mask": torch.ones(shape, dtype=torch.bool),
    }
    for name, v in fields.items():
        out[name] = torch.full(shape, v) if isinstance(v, bool) else v
    return out


# -- streams by hand -----------------------------------------------------------------------------------------------


def by_hand() -> SequentialReplayBuffer:
    """NEXT_STEP autoreset: episode 0 1 2(final, terminated), episode 10 11 12(final, cut), episode 20 21 22 ..."""
    replay = buffer(stride=3)
    for fields in (
        step(0, reset=True),
        step(1, terminated=True),
        step(2, mask=False),
        step(10, reset=True),
        step(11),  # the cap cuts the episode here: not terminated, and its successor 12 is real
        step(12, mask=False),
        step(20, reset=True),
        step(21),
        step(22),
        step(23),
    ):
        replay.add(**fields)
    return replay


def window(sample: ReplaySample, start: int) -> dict[str, list[Any]]:
    """The fields of the sampled window that begins at stream step `start`."""
    b = sample.start[0].tolist().index(start)
    names = ("action", "reward", "terminated", "reset", "mask")
    out = {name: getattr(sample, name)[0, b].tolist() for name in names}
    return out | {"obs": sample.obs[0, b, :, 0].tolist(), "h0": sample.h0[0, b].tolist(), "c0": sample.c0[0, b].tolist()}


def test_windows_by_hand() -> None:
    sample = by_hand().sample(50)
    T, F = True, False
    assert set(sample.start[0].tolist()) == {0, 3, 6}
    assert window(sample, 0) == {
        "obs": [0, 1, 2, 10], "reset": [T, F, F, T], "mask": [T, T, F], "terminated": [F, T, F],
        "action": [0, 1, 2], "reward": [0, 1, 2], "h0": [0.25] * H, "c0": [0.5] * H,
    }  # fmt: skip
    assert window(sample, 3) == {
        "obs": [10, 11, 12, 20], "reset": [T, F, F, T], "mask": [T, T, F], "terminated": [F, F, F],
        "action": [1, 2, 0], "reward": [10, 11, 12], "h0": [10.25] * H, "c0": [10.5] * H,
    }  # fmt: skip
    assert window(sample, 6)["obs"] == [20, 21, 22, 23]
    assert window(sample, 6)["h0"] == [20.25] * H  # the state given with observation 20, not with 21


def test_shapes_and_types_are_the_operators() -> None:
    replay = buffer(members=2, num_envs=3)
    for value in range(9):
        replay.add(**step(value, (2, 3)))
    for B in (1, 4):
        s = replay.sample(B)
        assert s.obs.shape == (2, B, 4, OBS) and s.h0.shape == s.c0.shape == (2, B, H)
        assert s.action.shape == s.reward.shape == s.terminated.shape == s.mask.shape == (2, B, 3)
        assert s.reset.shape == (2, B, 4) and s.weight.shape == (2, B)
        assert s.legal is not None and s.legal.shape == (2, B, 4, A) and s.legal.all()
        assert s.action.dtype == torch.int64 and s.reward.dtype == s.weight.dtype == torch.float32
        assert s.terminated.dtype == s.reset.dtype == s.mask.dtype == torch.bool


def test_legal_actions_come_back() -> None:
    replay = buffer(stride=3)
    legal = torch.rand(4, 1, 1, A, generator=torch.Generator().manual_seed(0)) < 0.5
    for value in range(4):
        replay.add(**step(value, legal=legal[value]))
    sampled = replay.sample(1).legal
    assert sampled is not None and torch.equal(sampled[0, 0], legal[:, 0, 0])


# -- against a twin of plain lists ---------------------------------------------------------------------------------


class Twin:
    """One stream as a list of everything ever written to it."""

    def __init__(self, seq_len: int, stride: int, ring: int):
        self.steps: list[dict[str, Any]] = []
        self.seq_len, self.stride, self.ring = seq_len, stride, ring

    def starts(self) -> list[int]:
        n = len(self.steps)
        return [s for s in range(0, n, self.stride) if s + self.seq_len < n and s >= n - self.ring]

    def window(self, start: int) -> dict[str, Any]:
        steps = self.steps[start : start + self.seq_len + 1]
        out = {name: [s[name] for s in steps] for name in ("obs", "reset", "legal")}
        out |= {name: [s[name] for s in steps[:-1]] for name in ("action", "reward", "terminated", "mask")}
        return out | {"h0": steps[0]["h"], "c0": steps[0]["c"]}


operations = st.lists(
    st.one_of(
        st.tuples(st.just("live"), st.integers(1, 9)),
        st.tuples(st.just("episode"), st.integers(1, 7), st.integers(0, 1), st.sampled_from([None, 0, 1])),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(operations, st.integers(1, 5), st.data())
def test_every_window_equals_the_twins(plan: list[Any], seq_len: int, data: Any) -> None:
    P, E = 2, 2
    stride = data.draw(st.integers(1, seq_len))
    ring = stride * data.draw(st.integers(-(-max(seq_len + 1, 8) // stride), 20))
    replay = buffer(P, E, seq_len, stride=stride, capacity=ring * E + data.draw(st.integers(0, E * stride - 1)))
    assert replay.ring == ring
    rng = np.random.default_rng(0)
    twins = [[Twin(seq_len, stride, ring) for _ in range(E)] for _ in range(P)]
    must_reset = np.ones((P, E), dtype=bool)

    def random(*lead: int) -> dict[str, Any]:
        return {
            "obs": rng.random((*lead, OBS), dtype=np.float32),
            "legal": rng.random((*lead, A)) < 0.7,
            "h": torch.rand(*lead, H),
            "c": torch.rand(*lead, H),
            "action": rng.integers(0, A, lead),
            "reward": rng.random(lead, dtype=np.float32),
            "terminated": rng.random(lead) < 0.2,
            "mask": rng.random(lead) < 0.8,
            "reset": rng.random(lead) < 0.2,
        }

    def entry(fields: dict[str, Any], *index: int) -> dict[str, Any]:
        return {name: v[index].tolist() for name, v in fields.items()}

    for kind, n, *where in plan:
        if kind == "live":
            for _ in range(n):
                fields = random(P, E)
                fields["reset"] |= must_reset
                must_reset[:] = False
                replay.add(**fields)
                for p in range(P):
                    for e in range(E):
                        twins[p][e].steps.append(entry(fields, p, e))
        else:
            p, e = where
            fields = random(n + 1)
            terminated = bool(fields["terminated"][0])
            replay.add_episode(
                p, fields["obs"], fields["action"][:n], fields["reward"][:n], terminated=terminated, env=e,
                legal=fields["legal"], h=fields["h"], c=fields["c"],
            )  # fmt: skip
            if e is None:
                e = int(np.argmin([len(t.steps) for t in twins[p]]))
            fields |= {"reset": np.arange(n + 1) == 0, "mask": np.arange(n + 1) < n}
            fields["terminated"] = (np.arange(n + 1) == n - 1) & terminated
            fields["action"][n] = fields["reward"][n] = 0
            twins[p][e].steps += [entry(fields, t) for t in range(n + 1)]
            must_reset[p, e] = True

        expected = [[(e, s) for e in range(E) for s in twins[p][e].starts()] for p in range(P)]
        assert replay.windows.tolist() == [len(w) for w in expected]
        assert replay.ready == all(expected) and (replay.missing() == "") == replay.ready
        assert len(replay) == min(sum(min(len(t.steps), ring) for t in twins[p]) for p in range(P))
        if not replay.ready:
            with pytest.raises(ValueError, match="more are missing"):
                replay.sample(1)
            continue
        sample = replay.sample(8)
        for p in range(P):
            for b in range(8):
                env, start = int(sample.slot[p, b]) // (ring // stride), int(sample.start[p, b])
                assert (env, start) in expected[p]
                for name, value in twins[p][env].window(start).items():
                    assert getattr(sample, name)[p, b].tolist() == value, name


def test_every_window_is_reached_and_no_other() -> None:
    replay = buffer(num_envs=2, seq_len=4, stride=2, capacity=2 * 10)
    for value in range(17):  # the ring of 10 holds steps 7..16: windows 8, 10, 12 are whole
        replay.add(**step(value, (1, 2)))
    sample = replay.sample(300)
    assert set(zip((sample.slot[0] // 5).tolist(), sample.start[0].tolist(), strict=True)) == {
        (env, start) for env in (0, 1) for start in (8, 10, 12)
    }
    assert torch.equal(sample.obs[0, :, :, 0], sample.start[0].unsqueeze(1) + torch.arange(5.0))


# -- external episodes ---------------------------------------------------------------------------------------------


def test_episodes_shorter_than_the_window_are_joined_not_dropped() -> None:
    replay = buffer(seq_len=6, stride=1)
    for k in range(4):
        replay.add_episode(0, torch.full((3, OBS), float(k)), [1, 2], [0.5, 1.5], terminated=True)
    sample = replay.sample(100)
    assert set(sample.start[0].tolist()) == {0, 1, 2, 3, 4, 5}
    first = window(sample, 0)
    assert first["obs"] == [0, 0, 0, 1, 1, 1, 2]
    assert first["reset"] == [True, False, False, True, False, False, True]
    assert first["mask"] == [True, True, False] * 2 and first["terminated"] == [False, True, False] * 2
    assert first["action"] == [1, 2, 0] * 2 and first["reward"] == [0.5, 1.5, 0] * 2
    assert set(sample.obs[0].unique().tolist()) == {0, 1, 2, 3}


def test_a_cut_episode_keeps_its_last_transition_valid() -> None:
    replay = buffer(seq_len=5, stride=5)
    for _ in range(2):
        replay.add_episode(0, torch.zeros(4, OBS), [0, 1, 2], [1, 1, 1], terminated=False)
    s = replay.sample(1)
    batch: Any = s  # the fields that validity reads have the same names
    assert not s.terminated.any() and valid_transitions(batch)[0, 0].tolist() == [True, True, True, False, True]


def test_a_live_episode_cut_by_an_added_one_is_masked_where_it_was_cut() -> None:
    replay = buffer(seq_len=3, stride=1)
    replay.add(**step(0, reset=True))
    replay.add(**step(1))
    replay.add_episode(0, torch.full((2, OBS), 7.0), [0], [1.0], terminated=True)
    sample: Any = replay.sample(1)
    assert valid_transitions(sample)[0, 0].tolist() == [True, False, True]
    with pytest.raises(ValueError, match="reset is False in a stream whose last step ended an added episode"):
        replay.add(**step(2))
    assert len(replay) == 4
    replay.add(**step(2, reset=True))
    replay.add(**step(3))
    assert len(replay) == 6


def test_states_of_added_episodes_are_zero_unless_given() -> None:
    replay = buffer(seq_len=2, stride=1)
    replay.add_episode(0, torch.zeros(4, OBS), [0, 0, 0], [0, 0, 0], terminated=True)
    assert not replay.sample(5).h0.any()
    replay = buffer(seq_len=2, stride=1)
    h = torch.arange(4.0).unsqueeze(1).expand(4, H)
    replay.add_episode(0, torch.zeros(4, OBS), [0, 0, 0], [0, 0, 0], terminated=True, h=h, c=-h)
    sample = replay.sample(20)
    assert torch.equal(sample.h0[0, :, 0], sample.start[0].float()) and torch.equal(sample.c0, -sample.h0)


def test_short_episodes_are_not_over_sampled() -> None:
    replay = buffer(num_envs=2, seq_len=8, stride=4, capacity=2 * 400)
    for _ in range(100):  # env 0: 100 episodes of 4 steps; env 1: one of 400
        replay.add_episode(0, torch.zeros(4, OBS), [0] * 3, [0] * 3, terminated=True, env=0)
    replay.add_episode(0, torch.ones(400, OBS), [0] * 399, [0] * 399, terminated=True, env=1)
    share = replay.sample(4000).obs[..., 0].mean()
    assert abs(share - 0.5) < 0.03  # drawn by episode it would be 1/101


# -- sampling laws -------------------------------------------------------------------------------------------------


def filled(prioritised: bool, members: int = 1, steps: int = 21, **arguments: Any) -> SequentialReplayBuffer:
    """10 windows per member (S = 3, stride 2), from step 0 to step 18."""
    replay = buffer(members, seq_len=2, stride=2, prioritised=prioritised, **arguments)
    for value in range(steps):
        replay.add(**step(value, (members, 1)))
    return replay


def set_priorities(replay: SequentialReplayBuffer, values: Tensor) -> None:
    """Priority values[start / 2] for the window at `start`, through the public way."""
    for _ in range(20):
        sample = replay.sample(64)
        replay.update_priorities(sample, values[sample.start // 2])


def chi_square(counts: Tensor, probability: Tensor) -> float:
    expected = counts.sum() * probability
    return float(((counts - expected) ** 2 / expected).sum())


LIMIT = 27.9  # 0.1% of chi-square draws with 9 degrees of freedom exceed it


def test_uniform_sampling_is_uniform() -> None:
    replay = filled(False)
    set_priorities(replay, torch.arange(10.0))  # has no say
    sample = replay.sample(5000)
    counts = torch.bincount(sample.start[0] // 2, minlength=10).double()
    assert chi_square(counts, torch.full((10,), 0.1)) < LIMIT
    assert torch.equal(sample.weight, torch.ones(1, 5000))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_prioritised_sampling_is_proportional(alpha: float) -> None:
    replay = filled(True, alpha=alpha, beta=0.7)
    values = torch.arange(1.0, 11.0)
    set_priorities(replay, values)
    sample = replay.sample(5000)
    counts = torch.bincount(sample.start[0] // 2, minlength=10).double()
    probability = values.double() ** alpha / (values.double() ** alpha).sum()
    assert chi_square(counts, probability) < LIMIT
    if alpha > 0:
        assert chi_square(counts, torch.full((10,), 0.1)) > 2 * LIMIT, "control: far from uniform"
    weight = (10 * probability[sample.start[0] // 2]) ** -0.7
    assert torch.allclose(sample.weight[0].double(), weight / weight.max(), atol=1e-5)
    assert sample.weight.max() == 1


def test_a_window_without_error_can_still_be_drawn() -> None:
    replay = filled(True, alpha=1.0)
    set_priorities(replay, torch.zeros(10))
    assert len(set(replay.sample(500).start[0].tolist())) == 10


def test_new_windows_get_the_highest_priority_so_far() -> None:
    replay = filled(True, alpha=1.0, members=2)
    values = torch.ones(10)
    values[3] = 50.0
    for _ in range(20):
        sample = replay.sample(64)
        scale = torch.tensor([[1.0], [2.0]])  # member 1 saw up to 100
        replay.update_priorities(sample, values[sample.start // 2] * scale)
    replay.add(**step(21, (2, 1)))
    replay.add(**step(22, (2, 1)))  # completes the window at 20
    start = replay.sample(8000).start
    share = (start == 20).float().mean(1)
    assert torch.allclose(share, torch.tensor([50 / 109, 100 / 218]), atol=0.03)
    share = (start == 2).float().mean(1)  # control: an ordinary window
    assert torch.allclose(share, torch.tensor([1 / 109, 2 / 218]), atol=0.01)


def test_priorities_of_overwritten_windows_are_ignored() -> None:
    replay = filled(True, alpha=1.0, capacity=22)
    assert replay.ring == 22
    sample = replay.sample(200)
    for value in range(21, 21 + 7):  # steps 22..27 write over the windows at 0, 2 and 4; those at 22 and 24 are new
        replay.add(**step(value))
    replay.update_priorities(sample, torch.where(sample.start < 6, 1e6, 1.0))
    start = replay.sample(2000).start[0]
    counts = torch.stack([(start == s).sum() for s in (*range(6, 20, 2), 20, 22, 24)]).double()
    assert counts.sum() == 2000 and chi_square(counts, torch.full((10,), 0.1)) < LIMIT
    replay.add(**step(28))
    replay.update_priorities(replay.sample(1), torch.full((1, 1), 3.0))
    replay.add(**step(29))
    with pytest.raises(ValueError, match=r"priority has shape \[1, 2\]; expected \[1, 1\]"):
        replay.update_priorities(replay.sample(1), torch.ones(1, 2))
    for bad in (float("nan"), -1.0, float("inf")):
        with pytest.raises(ValueError, match=r"priority of member \[0\] is negative or not finite"):
            replay.update_priorities(replay.sample(1), torch.full((1, 1), bad))


@pytest.mark.parametrize("prioritised", [False, True])
def test_draws_depend_on_the_members_seed_alone(prioritised: bool) -> None:
    def draws(seeds: list[int]) -> list[Tensor]:
        replay = filled(prioritised, members=len(seeds), seeds=seeds)
        out = []
        for _ in range(3):
            sample = replay.sample(16)
            replay.update_priorities(sample, (sample.start + 1.0).float())
            out.append(sample.start)
        return out

    many, again, alone, other = draws([5, 6, 7]), draws([5, 6, 7]), draws([6]), draws([9])
    for a, b, c, d in zip(many, again, alone, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a[1], c[0]) and not torch.equal(c, d)
    assert not torch.equal(many[0], many[1]), "the draws repeat"


# -- errors, size, checkpoints -------------------------------------------------------------------------------------


def test_it_says_how_much_is_missing() -> None:
    replay = buffer(members=2, num_envs=2, seq_len=5)
    with pytest.raises(ValueError, match="member 0 holds 0 of the 6 steps .* 6 more are missing"):
        replay.sample(1)
    for value in range(4):
        replay.add(**step(value, (2, 2)))
    replay.add_episode(1, torch.zeros(2, OBS), [0], [0], terminated=True)
    with pytest.raises(ValueError, match="member 0 holds 4 of the 6 steps .* 2 more are missing"):
        replay.sample(1)
    assert not replay.ready
    for value in range(2):
        replay.add(**step(value, (2, 2), reset=True))
    assert replay.ready and replay.sample(1).obs.shape == (2, 1, 6, OBS)
    with pytest.raises(ValueError, match="batch_size is 0"):
        replay.sample(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"obs": torch.zeros(1, 1, 3)}, r"obs has shape \[1, 1, 3\]; expected \[1, 1, 2\]"),
        ({"obs": torch.full((1, 1, 2), float("nan"))}, "obs holds NaN or infinity"),
        ({"reset": torch.zeros(2, 1, dtype=torch.bool)}, r"reset has shape \[2, 1\]"),
        ({"action": torch.zeros(1, 1)}, "action has dtype torch.float32"),
        ({"mask": torch.zeros(1, 1)}, "mask has dtype torch.float32"),
        ({"h": torch.zeros(1, 1, 5)}, r"h has shape \[1, 1, 5\]; expected \[1, 1, 2\]"),
        ({"legal": torch.ones(1, 1, 4, dtype=torch.bool)}, r"legal has shape \[1, 1, 4\]"),
    ],
)
def test_wrong_steps_are_refused_whole(fields: dict[str, Any], message: str) -> None:
    replay = buffer()
    with pytest.raises(ValueError, match=message):
        replay.add(**step(0, **fields))
    assert len(replay) == 0


def test_wrong_episodes_are_refused_whole() -> None:
    replay = buffer()
    good: dict[str, Any] = {"obs": torch.zeros(3, OBS), "action": [0, 1], "reward": [0, 1], "terminated": True}
    for change, message in (
        ({"member": 1}, "member is 1; expected 0..0"),
        ({"env": 1}, "env is 1; expected 0..0 or None"),
        ({"action": []}, r"action holds 0 steps; expected 1..59"),
        ({"action": [0] * 60}, r"action holds 60 steps; expected 1..59"),
        ({"obs": torch.zeros(2, OBS)}, r"obs has shape \[2, 2\]; expected \[3, 2\]"),
        ({"reward": [0]}, r"reward has shape \[1\]; expected \[2\]"),
        ({"h": torch.zeros(2, H)}, r"h has shape \[2, 2\]; expected \[3, 2\]"),
        ({"legal": torch.ones(3, 4, dtype=torch.bool)}, r"legal has shape \[3, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            replay.add_episode(**({"member": 0} | good | change))
        assert len(replay) == 0
    replay.add_episode(0, **good)
    assert len(replay) == 3


def test_without_legal_actions_none_are_kept() -> None:
    replay = buffer(store_legal=False)
    for value in range(4):
        replay.add(**step(value))
    assert replay.sample(1).legal is None
    with pytest.raises(ValueError, match="legal is given, but this buffer was made with store_legal=False"):
        replay.add(**step(0, legal=torch.ones(1, 1, A, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 0, "seeds": [1]}, "seeds holds 1 values"),
        ({"seeds": [1, 2]}, "seeds holds 2 values; expected one per member, 1"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"capacity": 1.5}, "capacity is 1.5"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"stride": 4}, r"stride is 4; expected 1..seq_len = 1..3, or None"),
        ({"stride": 0}, "stride is 0"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"num_envs": 2, "capacity": 7}, "a window takes 4; expected at least 8"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        buffer(**arguments)


def test_memory_is_measured_stated_and_refused_before_allocation(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = dict(members=2, num_envs=3, capacity=500, obs_size=7, n_actions=4, hidden_size=5, seq_len=8)
    size = SequentialReplayBuffer.measure(**sizes)
    assert size.ring == 164 and size.windows == 3 * 41
    with caplog.at_level(logging.INFO, logger="townlet.replay"):
        replay = SequentialReplayBuffer(**sizes, seeds=[1, 2])
    assert "replay: 2 x 3 streams of 164 steps, 0.1 MiB" in caplog.text
    held = [*replay._data.values(), replay._h, replay._c, replay._priority, replay._start]
    assert size.nbytes == replay.nbytes == sum(v.numel() * v.element_size() for v in held)

    def no_allocation(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "zeros", no_allocation)
    with pytest.raises(MemoryError, match=r"replay: 2 x 3 streams of 333333333332 steps, .* MiB; this machine has .* MiB"):
        SequentialReplayBuffer(**(sizes | {"capacity": 10**12}), seeds=[1, 2])
    monkeypatch.undo()
    monkeypatch.setattr(replay_module, "_machine_memory", lambda: 2**62)
    with pytest.raises(MemoryError, match="allocation failed"):
        SequentialReplayBuffer(**(sizes | {"capacity": 10**15}), seeds=[1, 2])


@pytest.mark.parametrize("steps", [9, 70])
def test_a_restored_buffer_goes_on_bit_for_bit(steps: int) -> None:
    def go_on(replay: SequentialReplayBuffer) -> list[Tensor]:
        out = []
        for value in range(30):
            replay.add(**step(value, (2, 1)))
            sample = replay.sample(4)
            replay.update_priorities(sample, sample.obs[:, :, 0, 0] + 1)
            out += [v for v in sample if v is not None]
        return out

    replay = filled(True, members=2, steps=steps)
    set_priorities(replay, torch.arange(1.0, 100.0))
    saved = torch.utils._pytree.tree_map_only(Tensor, torch.clone, replay.state_dict())
    assert saved["data"]["obs"].shape == (2, min(steps, 60), OBS), "steps never written are saved"
    expected = go_on(replay)
    other = buffer(2, seq_len=2, stride=2, prioritised=True, seeds=[50, 60])
    other.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(go_on(other), expected, strict=True))
    other = buffer(2, seq_len=2, stride=2, prioritised=True, seeds=[50, 60])
    other.load_state_dict({**saved, "samples": saved["samples"] + 1})
    assert not all(torch.equal(a, b) for a, b in zip(go_on(other), expected, strict=True)), "control"


def test_a_foreign_state_is_refused() -> None:
    replay = filled(True)
    good = replay.state_dict()
    with pytest.raises(ValueError, match="replay state holds"):
        replay.load_state_dict({k: v for k, v in good.items() if k != "count"})
    with pytest.raises(ValueError, match="replay state has seq_len 3; expected 2"):
        replay.load_state_dict({**good, "layout": {**good["layout"], "seq_len": 3}})
    with pytest.raises(ValueError, match=r"replay state: h has shape \[1, 2\]; expected \[30, 2\]"):
        replay.load_state_dict({**good, "h": good["h"][:1]})
    with pytest.raises(ValueError, match="replay state holds"):
        replay.load_state_dict({**good, "data": {}})
