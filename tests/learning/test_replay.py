"""Replay: streams against a list-based twin, hand-computed windows, sampling laws, ring, errors, checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import OBS, A, H, buffer, step

from townlet.learning.replay import SequentialReplayBuffer
from townlet.learning.sampling import ReplaySample
from townlet.reference import valid_transitions

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
    return out | {
        "obs": sample.obs[0, b, :, 0].tolist(),
        "h0": sample.h0[0, b].tolist(),
        "c0": sample.c0[0, b].tolist(),
    }


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
        assert s.obs.shape == (2, B, 4, OBS)
        assert s.h0.shape == s.c0.shape == (2, B, H)
        assert s.action.shape == s.reward.shape == s.terminated.shape == s.mask.shape == (2, B, 3)
        assert s.reset.shape == (2, B, 4)
        assert s.weight.shape == (2, B)
        assert s.legal is not None
        assert s.legal.shape == (2, B, 4, A)
        assert s.legal.all()
        assert s.action.dtype == torch.int64
        assert s.reward.dtype == s.weight.dtype == torch.float32
        assert s.terminated.dtype == s.reset.dtype == s.mask.dtype == torch.bool


def test_legal_actions_come_back() -> None:
    replay = buffer(stride=3)
    legal = torch.rand(4, 1, 1, A, generator=torch.Generator().manual_seed(0)) < 0.5
    for value in range(4):
        replay.add(**step(value, legal=legal[value]))
    sampled = replay.sample(1).legal
    assert sampled is not None
    assert torch.equal(sampled[0, 0], legal[:, 0, 0])


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
        assert replay.ready == all(expected)
        assert (replay.missing() == "") == replay.ready
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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_streams_are_each_written_and_read_as_if_alone(threads: int) -> None:
    P, E, rng = 2, 70, np.random.default_rng(0)  # more streams than one thread takes at a time
    together = buffer(P, E, capacity=8 * E, stride=2)
    alone = [buffer(capacity=8, stride=2) for _ in range(P * E)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for value in range(19):
            obs, legal = rng.random((P, E, OBS), dtype=np.float32), rng.random((P, E, A)) < 0.7
            fields = step(value, (P, E), obs=torch.from_numpy(obs), legal=torch.from_numpy(legal))
            fields["h"] = torch.from_numpy(rng.random((P, E, H), dtype=np.float32))
            together.add(**fields)
            for i, single in enumerate(alone):
                single.add(**{name: v.flatten(0, 1)[i].view(1, 1, *v.shape[2:]) for name, v in fields.items()})
        sample = together.sample(500)
    finally:
        torch.set_num_threads(before)
    for name, table in together._data.items():
        assert torch.equal(table, torch.cat([single._data[name] for single in alone])), name
    for name, table in together._tables().items():
        if name != "max_priority":
            assert torch.equal(table, torch.cat([single._tables()[name] for single in alone])), name
    stream = torch.arange(P).unsqueeze(1) * E + sample.slot // 4
    where = stream.unsqueeze(-1) * 8 + (sample.start.unsqueeze(-1) + torch.arange(4)) % 8
    assert torch.equal(sample.obs, together._data["obs"][where])
    assert not torch.equal(sample.obs, together._data["obs"][(where + 8) % (P * E * 8)]), "control: the next stream's"


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
    assert first["mask"] == [True, True, False] * 2
    assert first["terminated"] == [False, True, False] * 2
    assert first["action"] == [1, 2, 0] * 2
    assert first["reward"] == [0.5, 1.5, 0] * 2
    assert set(sample.obs[0].unique().tolist()) == {0, 1, 2, 3}


def test_a_cut_episode_keeps_its_last_transition_valid() -> None:
    replay = buffer(seq_len=5, stride=5)
    for _ in range(2):
        replay.add_episode(0, torch.zeros(4, OBS), [0, 1, 2], [1, 1, 1], terminated=False)
    s = replay.sample(1)
    batch: Any = s  # the fields that validity reads have the same names
    assert not s.terminated.any()
    assert valid_transitions(batch)[0, 0].tolist() == [True, True, True, False, True]


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


def test_a_final_observation_lengthens_the_streams_that_ended_and_no_other() -> None:
    """In stream 1 every step ends an episode: as if its final observations were steps of their own, masked."""
    both, alone = (buffer(1, n, seq_len=2, stride=1, capacity=60) for n in (2, 1))
    state = torch.arange(2 * H).view(1, 2, H) / 10
    for value in range(0, 12, 2):
        both.add(**step(value, (1, 2), reset=True, mask=True))
        both.add_final(torch.tensor([[False, True]]), torch.full((1, OBS), value + 1.0), None, state, state + 1)
        alone.add(**step(value, reset=True))
        nothing = torch.zeros(1, 1)
        final = {"action": nothing.int(), "reward": nothing, "h": state[:, 1:], "c": state[:, 1:] + 1}
        alone.add(**step(value + 1, mask=False, **final))
    assert both._count.tolist() == [6, 12]
    for name, mine in both._data.items():
        rows = slice(both.ring, both.ring + 12)
        assert torch.equal(mine[rows], alone._data[name][:12]), name
    assert torch.equal(both._h[both.ring : both.ring + 12], alone._h[:12])
    assert torch.equal(both._c[both.ring : both.ring + 12], alone._c[:12])
    assert both.windows.tolist() == [4 + 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ended": torch.ones(1, 3) > 0}, r"mask has shape \[1, 3\]; expected \[1, 2\]"),
        ({"obs": torch.zeros(2, OBS)}, r"obs has shape \[2, 2\]; expected \[1, 2\]"),
        (
            {"ended": torch.ones(1, 2, dtype=torch.bool), "obs": torch.tensor([[0.0] * OBS, [torch.inf] * OBS])},
            "obs holds NaN or infinity",
        ),
        ({"legal": torch.ones(1, A + 1, dtype=torch.bool)}, r"legal has shape \[1, 4\]; expected \[1, 3\]"),
        ({"h": torch.zeros(1, 1, H)}, r"h has shape \[1, 1, 2\]; expected \[1, 2, 2\]"),
    ],
)
def test_a_final_observation_that_does_not_fit_is_named_and_not_stored(changes: dict[str, Any], message: str) -> None:
    replay, state = buffer(1, 2), torch.zeros(1, 2, H)
    replay.add(**step(0, (1, 2), reset=True))
    ended = torch.tensor([[False, True]])
    given = {"ended": ended, "obs": torch.zeros(1, OBS), "legal": None, "h": state, "c": state, **changes}
    with pytest.raises(ValueError, match=message):
        replay.add_final(**given)
    assert replay._count.tolist() == [1, 1]


def test_states_of_added_episodes_are_zero_unless_given() -> None:
    replay = buffer(seq_len=2, stride=1)
    replay.add_episode(0, torch.zeros(4, OBS), [0, 0, 0], [0, 0, 0], terminated=True)
    assert not replay.sample(5).h0.any()
    replay = buffer(seq_len=2, stride=1)
    h = torch.arange(4.0).unsqueeze(1).expand(4, H)
    replay.add_episode(0, torch.zeros(4, OBS), [0, 0, 0], [0, 0, 0], terminated=True, h=h, c=-h)
    sample = replay.sample(20)
    assert torch.equal(sample.h0[0, :, 0], sample.start[0].float())
    assert torch.equal(sample.c0, -sample.h0)


def test_short_episodes_are_not_over_sampled() -> None:
    replay = buffer(num_envs=2, seq_len=8, stride=4, capacity=2 * 400)
    for _ in range(100):  # env 0: 100 episodes of 4 steps; env 1: one of 400
        replay.add_episode(0, torch.zeros(4, OBS), [0] * 3, [0] * 3, terminated=True, env=0)
    replay.add_episode(0, torch.ones(400, OBS), [0] * 399, [0] * 399, terminated=True, env=1)
    share = replay.sample(4000).obs[..., 0].mean()
    assert abs(share - 0.5) < 0.03  # drawn by episode it would be 1/101
