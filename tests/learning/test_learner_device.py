"""The learner's update in its form for a device, where nobody waits for the device to find out whether all is well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learners import broken, make, state_of

from townlet import ops

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("arguments", [{}, {"tau": 0.3, "sync_every": 1}, {"use_target": False}], ids=str)
def test_deferring_the_checks_changes_no_result(arguments: dict[str, Any]) -> None:
    now, later = make([1, 2], **arguments), make([1, 2], deferred=True, **arguments)
    for _ in range(7):
        metrics = [learner.update() for learner in (now, later)]
        for name, value in metrics[0].items():
            assert torch.allclose(value, metrics[1][name], atol=1e-5), name  # observed 4e-7
    for a, b in zip(state_of(now), state_of(later), strict=True):
        assert torch.allclose(a, b, atol=1e-5)  # observed 1e-6: one Adam is the kernel, the other its twin
    later.population.check()
    saved = [learner.population.state_dict()["adam_steps"] for learner in (now, later)]
    assert saved == [7, 7]


def spoilt(learner: Any, what: str) -> Any:
    """Makes one thing of member 1 not finite; returns how to repair it."""
    if what == "a replayed observation":
        stored = learner.replay._data["obs"]
        before = stored.clone()
        stored.view(2, -1)[1] = float("inf")
        return lambda: stored.copy_(before)
    learner.td_unroll = broken({"loss": "reward", "gradient": "gradient"}[what])
    return lambda: setattr(learner, "td_unroll", ops.td_unroll)


@pytest.mark.parametrize("what", ["a replayed observation", "loss", "gradient"])
def test_what_is_not_finite_changes_nothing_and_is_named_when_asked(what: str) -> None:
    learner = make([1, 2], deferred=True, sync_every=100)
    repair = spoilt(learner, what)
    before, priority = state_of(learner), learner.replay.state_dict()["priority"].clone()
    for _ in range(2):
        learner.update()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(learner), strict=True))
    assert torch.equal(learner.replay.state_dict()["priority"], priority)
    assert int(learner.population.adam_steps) == 0
    with pytest.raises(ValueError, match=f"{what} of member 1 is not finite"):
        learner.population.check()
    repair()
    learner.update()
    learner.population.check()
    assert int(learner.population.adam_steps) == 1
    assert not torch.equal(before[0], state_of(learner)[0])


def test_saved_under_either_form_it_goes_on_under_the_other() -> None:
    for first, second in ((None, True), (True, None)):
        one, two = make([1, 2], deferred=first), make([1, 2], deferred=second)
        for _ in range(4):
            one.update()
        for part in ("population", "replay"):
            getattr(two, part).load_state_dict(getattr(one, part).state_dict())
        two.load_state_dict(one.state_dict())
        for _ in range(3):
            one.update()
            two.update()
        for a, b in zip(state_of(one), state_of(two), strict=True):
            assert torch.allclose(a, b, atol=1e-5)  # observed 6e-7
        assert one.population.state_dict()["adam_steps"] == two.population.state_dict()["adam_steps"] == 7
