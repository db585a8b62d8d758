"""One update of a population: what it computes, what it leaves alone, members apart and together, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learners import GAMMA, OBS, A, E, S, World, broken, make, state_of
from torch import Tensor

from townlet import ops, reference
from townlet.learning.learner import Learner
from townlet.learning.networks import cut_memory
from townlet.learning.population import VectorizedPopulation
from townlet.learning.sampling import ReplaySample
from townlet.ops import SequenceBatch, TDOutput, TDSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# -- what is computed ----------------------------------------------------------------------------------------------


def test_an_update_is_the_reference_loss_then_clip_then_adam() -> None:
    learner, twin = make([1, 2]), make([1, 2])
    for each in (learner, twin):
        drawn = each.replay.sample(30)
        each.replay.update_priorities(drawn, (drawn.start + 1.0).float())
        each.population.online_flat *= 1.2  # the target is another network
        each.population.clip_norm.fill_(0.52)
    metrics = learner.update()
    population, network, sample = twin.population, twin.population.network, twin.replay.sample(16)
    assert sample.weight.min() < 0.9, "importance weights have no say here"
    batch = SequenceBatch(
        network.encode(population.online, sample.obs), network.encode(population.target_network, sample.obs).detach(),
        sample.h0, sample.c0, sample.action, sample.reward, sample.terminated, sample.reset, sample.mask, sample.weight,
        sample.legal,
    )  # fmt: skip
    out = reference.td_unroll(
        network.recurrent(population.online), network.recurrent(population.target_network), batch, twin.spec
    )
    population.backward(out.loss)
    norm = population.adam_step()
    assert torch.allclose(population.grad_flat, learner.population.grad_flat, atol=1e-5)  # observed 2e-7
    assert torch.allclose(population.online_flat, learner.population.online_flat, atol=1e-4)  # observed 1e-5
    valid = reference.valid_transitions(batch)
    trained = valid.clone()
    trained[:, :, :2] = False
    y = out.q_taken + out.td_error
    assert norm.min() < 0.52 < norm.max(), "clipping has no say here"  # 0.504 and 0.541
    expected = {
        "loss": out.loss.detach(),
        "td_error": torch.stack([out.td_error[p][trained[p]].abs().mean() for p in range(2)]),
        "td_error_max": torch.stack([out.td_error[p][trained[p]].abs().max() for p in range(2)]),
        "target": torch.stack([y[p][trained[p]].mean() for p in range(2)]),
        "clipped": torch.tensor([1.0, 0.0]),
        "q": torch.stack([out.q_taken[p][valid[p]].mean() for p in range(2)]),
        "grad_norm": norm,
        "priority": out.priority.mean(1),
        "valid": trained[:, :, 2:].float().mean((1, 2)),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].shape == (2,), name
        assert torch.allclose(metrics[name], value, atol=1e-5), name
    assert 0 < metrics["valid"][0] < 1


def test_priorities_reach_the_buffer() -> None:
    learner = make([1, 2])
    kept: list[Any] = []

    def remember(*arguments: Any) -> TDOutput:
        kept.append(ops.td_unroll(*arguments))
        return kept[-1]

    learner.td_unroll = remember
    sampled: list[ReplaySample] = []
    windows = learner.replay.windows_at

    def windows_at(draws: Tensor) -> ReplaySample:
        sampled.append(windows(draws))
        return sampled[-1]

    learner.replay.windows_at = windows_at  # type: ignore[method-assign]
    before = learner.replay.state_dict()["priority"].clone()
    learner.update()
    after = learner.replay.state_dict()["priority"].view(2, -1)
    assert not torch.equal(before, after.flatten())
    assert torch.allclose(after.gather(1, sampled[0].slot).float(), kept[0].priority)


def test_recurrent_weights_learn_and_q_depends_on_the_past() -> None:
    learner = make([1, 2])
    learner.update()
    population = learner.population
    assert (population.online["lstm.w_hh"].grad.flatten(1).norm(dim=1) > 0).all()  # type: ignore[union-attr]
    q = []
    now = torch.randn(2, E, OBS)
    for before in (torch.randn(2, E, OBS), torch.randn(2, E, OBS)):
        population.reset_state()
        no = torch.zeros(2, E, dtype=torch.bool)
        population.act(before, no)
        population.act(now, no)
        q.append(population.network.q_values(population.online, population.state[0]).detach())
    assert (q[0] - q[1]).abs().max() > 1e-3


@pytest.mark.parametrize("stored", ["before", "after"])
def test_stored_states_reproduce_acting(stored: str) -> None:
    """Unrolling a window from its stored state gives the states that acting went through."""
    learner = make([1, 2], stored=stored)
    population, sample = learner.population, learner.replay.sample(200)
    w = population.network.recurrent(population.online)
    with torch.no_grad():
        x = population.network.encode(population.online, sample.obs)
        _y, h, _ = ops.lstm_unroll(x, sample.h0, sample.c0, w.w_ih, w.w_hh, w.bias, sample.reset)
    slots = learner.replay.ring // learner.replay.stride
    latest = sample.start == sample.start.max()  # the window that ends nearest to now; walk on from there
    assert latest.any()
    errors = []
    for p, b in latest.nonzero().tolist():
        # its last observation is the one acting saw `gap` steps ago; only gap 0 can be compared with the live state
        env, gap = int(sample.slot[p, b]) // slots, 39 - int(sample.start[p, b]) - S
        assert gap == 0
        errors.append((h[p, b] - population.state[0][p, env]).abs().max())
    worst = torch.stack(errors).max()
    assert (worst < 1e-5) == (stored == "before")  # observed 1e-7 and 0.1


# -- what is left alone --------------------------------------------------------------------------------------------


def test_an_update_leaves_the_acting_state_untouched() -> None:
    learner, idle = make([1, 2]), make([1, 2])
    population = learner.population
    h, c = (v.clone() for v in population.state)
    assert h.abs().min() > 0
    count = population.act_count
    for _ in range(4):
        learner.update()
    assert torch.equal(population.state[0], h)
    assert torch.equal(population.state[1], c)
    assert population.act_count == count
    fields = World([8, 9]).step()
    idle.population.online_flat.copy_(population.online_flat)
    with_training = population.act(fields["obs"], fields["reset"], fields["legal"], 0.5)
    without = idle.population.act(fields["obs"], fields["reset"], fields["legal"], 0.5)
    assert torch.equal(with_training, without)
    assert torch.equal(population.state[0], idle.population.state[0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [("reward", "loss of member 1 is not finite"), ("gradient", "gradient of member 1 is not finite")],
)
def test_what_is_not_finite_is_named_before_anything_is_touched(kind: str, message: str) -> None:
    learner = make([1, 2], td_unroll=broken(kind))
    before, priority = state_of(learner), learner.replay.state_dict()["priority"].clone()
    with pytest.raises(ValueError, match=message):
        learner.update()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(learner), strict=True))
    assert torch.equal(learner.replay.state_dict()["priority"], priority)
    assert learner.updates == 0
    learner.td_unroll = ops.td_unroll
    learner.update()


def test_an_observation_that_is_not_finite_is_named() -> None:
    learner = make([1, 2])
    stored = learner.replay._data["obs"].view(2, -1)
    stored[1] = float("inf")
    before = state_of(learner)
    with pytest.raises(ValueError, match="replayed observation of member 1 is not finite"):
        learner.update()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(learner), strict=True))


# -- members, runs, variants ---------------------------------------------------------------------------------------


def test_members_together_follow_members_apart() -> None:
    together, apart = make([1, 2, 3]), [make([seed]) for seed in (1, 2, 3)]
    for _ in range(7):
        metrics = together.update()
        for p, learner in enumerate(apart):
            alone = learner.update()
            for name in metrics:
                assert torch.allclose(alone[name][0], metrics[name][p], atol=1e-4), name  # observed 2e-6
    for p, learner in enumerate(apart):
        for a, b in zip(state_of(learner), state_of(together), strict=True):
            assert torch.allclose(a[0], b[p], atol=1e-4)  # observed 3e-6
    assert not torch.allclose(together.population.online_flat[0], together.population.online_flat[1], atol=1e-2)


def test_a_members_learning_rate_is_its_own() -> None:
    one, other = make([1, 2], lr=[1e-2, 1e-2]), make([1, 2], lr=[1e-2, 5e-2])
    one.update()
    other.update()
    assert torch.equal(one.population.online_flat[0], other.population.online_flat[0])
    assert not torch.equal(one.population.online_flat[1], other.population.online_flat[1])


def run(seed: int, updates: int) -> list[Tensor]:
    learner = make([seed, seed + 1])
    metrics = [learner.update() for _ in range(updates)]
    return state_of(learner) + [v for m in metrics for v in m.values()]


def test_the_same_seed_gives_the_same_bits() -> None:
    one, again, other = run(1, 5), run(1, 5), run(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "control"


def test_saved_and_restored_it_goes_on_bit_for_bit() -> None:
    learner = make([1, 2])
    for _ in range(4):
        learner.update()
    parts: tuple[Any, ...] = (learner.population, learner.replay, learner)
    saved = [torch.utils._pytree.tree_map_only(Tensor, torch.clone, part.state_dict()) for part in parts]
    expected = [learner.update() for _ in range(4)]
    other = make([3, 4])
    others: tuple[Any, ...] = (other.population, other.replay, other)
    for part, state in zip(others, saved, strict=True):
        part.load_state_dict(state)
    for metrics in expected:
        again = other.update()
        assert all(torch.equal(metrics[name], again[name]) for name in metrics)
    assert all(torch.equal(a, b) for a, b in zip(state_of(learner), state_of(other), strict=True))
    assert other.updates == 8
    other.load_state_dict({"updates": 3})  # control: the count decides when the target is synced
    with pytest.raises(ValueError, match=r"learner state holds \['step'\]"):
        other.load_state_dict({"step": 3})


def test_without_memory_training_is_that_of_a_state_zeroed_at_each_step() -> None:
    learner = make([1, 2], memory=False, spec={"burn_in": 0})
    seen: list[tuple[Any, ...]] = []

    def remember(*arguments: Any) -> TDOutput:
        seen.append((*arguments, ops.td_unroll(*arguments)))
        return seen[-1][-1]

    learner.td_unroll = remember
    population, network = learner.population, learner.population.network
    weights = network.recurrent({name: v.detach().clone() for name, v in population.online.items()})
    learner.update()
    _, _, batch, _, out = seen[0]
    always = torch.ones_like(batch.reset)
    y, _, _ = ops.lstm_unroll(batch.features_online.detach(), batch.h0, batch.c0, *weights[:3], always)
    q = reference.head(weights, y.flatten(1, 2)).view(2, 16, S + 1, A)[:, :, :-1]
    expected = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    valid = reference.valid_transitions(batch)
    assert torch.allclose(out.q_taken, expected.where(valid, 0.0), atol=1e-5)
    assert valid.any()
    plain = make([1, 2], spec={"burn_in": 0})
    plain.td_unroll = remember
    plain.update()
    assert not torch.allclose(seen[1][-1].q_taken, out.q_taken, atol=1e-3), "control: memory changes them"
    grad = population.online["lstm.w_hh"].grad
    assert grad is not None
    assert not grad.any()
    target = network.recurrent(population.target_network)
    assert torch.equal(population.packed_target.params.bias, cut_memory(target).bias)


def test_without_a_target_network_the_online_one_bootstraps() -> None:
    learner = make([1, 2], use_target=False)
    learner.population.target_flat.fill_(float("nan"))
    seen: list[Any] = []

    def remember(online: Any, target: Any, batch: SequenceBatch, spec: TDSpec) -> TDOutput:
        seen.append((target, batch.features_target))
        return ops.td_unroll(online, target, batch, spec)

    learner.td_unroll = remember
    for _ in range(4):
        assert learner.update()["loss"].isfinite().all()
    assert seen == [(None, None)] * 4
    assert learner.population.target_flat.isnan().all(), "synced though unused"


def test_bfloat16_operands() -> None:
    learner = make([1, 2])
    with pytest.raises(ValueError, match=r"spec.compute_dtype is torch.bfloat16; expected the population's"):
        Learner(
            learner.population,
            learner.replay,
            TDSpec(gamma=GAMMA, compute_dtype=torch.bfloat16),
            batch_size=4,
            sync_every=1,
        )
    network = learner.population.network
    population = VectorizedPopulation(network, [1, 2], num_envs=E, gamma=GAMMA, compute_dtype=torch.bfloat16)
    spec = TDSpec(gamma=GAMMA, n_step=3, burn_in=2, compute_dtype=torch.bfloat16)
    rounded = Learner(population, learner.replay, spec, batch_size=16, sync_every=1)
    assert rounded.update()["loss"].isfinite().all()
    assert rounded.update()["loss"].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sync_every": 0}, "sync_every is 0"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"spec": {"burn_in": S}}, "spec.burn_in is 6; expected less than replay's seq_len, 6"),
        ({"spec": {"gamma": 0.8}}, "spec.gamma is 0.8; expected the population's gamma"),
        ({"spec": {"gamma": torch.tensor([0.9, 0.9, 0.9])}}, r"spec.gamma has shape \[3\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([1, 2], **arguments)


def test_a_buffer_of_other_members_is_refused() -> None:
    one, two = make([1]), make([1, 2])
    with pytest.raises(ValueError, match="replay has 1 members; expected the population's 2"):
        Learner(two.population, one.replay, two.spec, batch_size=1, sync_every=1)


def test_an_empty_buffer_is_refused() -> None:
    learner = make([1, 2])
    learner.replay._count.zero_()
    with pytest.raises(ValueError, match="replay cannot be sampled yet"):
        learner.update()


@pytest.mark.parametrize("memory", [True, False])
def test_gradients_written_in_place_train_like_fresh_ones(memory: bool) -> None:
    own, fresh = make([1, 2], memory=memory), make([1, 2], memory=memory, td_unroll=ops.td_unroll)
    for _ in range(5):
        own.update()
        fresh.update()
    assert all(torch.equal(a, b) for a, b in zip(state_of(own), state_of(fresh), strict=True))
    assert torch.equal(own.population.grad_flat, fresh.population.grad_flat)
    assert bool(own.population.grad_flat.any())
