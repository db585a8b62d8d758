"""How replay draws its windows and keeps their priorities; its errors, size and checkpoints."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from replay_cases import OBS, A, H, buffer, filled, set_priorities, step
from torch import Tensor

from townlet.learning.replay import SequentialReplayBuffer
from townlet.support import devices

# -- sampling laws -------------------------------------------------------------------------------------------------


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
    assert counts.sum() == 2000
    assert chi_square(counts, torch.full((10,), 0.1)) < LIMIT
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
        assert torch.equal(a, b)
        assert torch.equal(a[1], c[0])
        assert not torch.equal(c, d)
    assert not torch.equal(many[0], many[1]), "the draws repeat"


# -- errors, size, checkpoints -------------------------------------------------------------------------------------


def test_it_says_how_much_is_missing() -> None:
    replay = buffer(members=2, num_envs=2, seq_len=5)
    with pytest.raises(ValueError, match=r"member 0 holds 0 of the 6 steps .* 6 more are missing"):
        replay.sample(1)
    for value in range(4):
        replay.add(**step(value, (2, 2)))
    replay.add_episode(1, torch.zeros(2, OBS), [0], [0], terminated=True)
    with pytest.raises(ValueError, match=r"member 0 holds 4 of the 6 steps .* 2 more are missing"):
        replay.sample(1)
    assert not replay.ready
    for value in range(2):
        replay.add(**step(value, (2, 2), reset=True))
    assert replay.ready
    assert replay.sample(1).obs.shape == (2, 1, 6, OBS)
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


def test_the_position_of_a_bad_observation_is_named_and_no_stream_has_moved() -> None:
    replay = buffer(members=2, num_envs=40)
    replay.add(**step(1, (2, 40)))
    before = torch.utils._pytree.tree_map_only(Tensor, torch.clone, replay.state_dict())
    obs = torch.zeros(2, 40, OBS)
    obs[1, 7, 1], obs[1, 30, 0] = float("inf"), float("nan")
    with pytest.raises(ValueError, match=r"obs holds NaN or infinity, first at \[1, 7, 1\]; expected finite numbers"):
        replay.add(**step(2, (2, 40), obs=obs))
    with pytest.raises(ValueError, match=r"first at \[22, 0\]"):
        replay.add_episode(0, obs[1].roll(32, 0), [0] * 39, [0] * 39, terminated=True)
    saved = zip(*map(torch.utils._pytree.tree_leaves, (before, replay.state_dict())), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in saved)
    replay.add(**step(2, (2, 40), obs=torch.full((2, 40, OBS), 3e38)))  # control: large is not infinite
    assert len(replay) == 80


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
    with pytest.raises(ValueError, match="legal is given to a buffer made with store_legal=False; expected None"):
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
    sizes: dict[str, Any] = {
        "members": 2,
        "num_envs": 3,
        "capacity": 500,
        "obs_size": 7,
        "n_actions": 4,
        "hidden_size": 5,
        "seq_len": 8,
    }
    size = SequentialReplayBuffer.measure(**sizes)
    assert size.ring == 164
    assert size.windows == 3 * 41
    with caplog.at_level(logging.INFO, logger="townlet.learning.replay"):
        replay = SequentialReplayBuffer(**sizes, seeds=[1, 2])
    assert "replay: 2 x 3 streams of 164 steps, 0.1 MiB" in caplog.text
    held = [*replay._data.values(), replay._h, replay._c, replay._priority, replay._start]
    assert size.nbytes == replay.nbytes == sum(v.numel() * v.element_size() for v in held)

    def no_allocation(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "zeros", no_allocation)
    with pytest.raises(
        MemoryError, match=r"replay: 2 x 3 streams of 333333333332 steps, .* MiB; expected at most .* of this machine"
    ):
        SequentialReplayBuffer(**(sizes | {"capacity": 10**12}), seeds=[1, 2])
    monkeypatch.undo()
    monkeypatch.setattr(devices, "total_memory", lambda device: 2**62)
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
