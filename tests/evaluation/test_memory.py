"""The memory probe: each kind of agent gets the sentence that is true of it; the measurements, each by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import arguments
from PIL import Image
from torch import Tensor
from worlds import tiny

from townlet import ops, reference
from townlet.cli import main
from townlet.evaluate import evaluate_actor
from townlet.evaluation.memory import DisturbedActor, MemoryProbe, _WindowRecorder, influence, probe
from townlet.learning.networks import RecurrentQNetwork
from townlet.report import Agent

pytestmark = pytest.mark.usefixtures("one_thread")
OPEN, SHUT = 10.0, -200.0  # the sigmoid of SHUT is exactly 0


def by_hand(**changes: Any) -> tuple[RecurrentQNetwork, dict[str, Tensor]]:
    """Two LSTM units on [cue, first]. Unit 0 keeps the first step's cue for ever, unit 1 is not used; Q = -h0, h0.

    changes: weights to set, as "lstm.w_ih": {(gate * 2 + unit, input): value}.
    """
    network = RecurrentQNetwork(2, 2, encoder=(), hidden_size=2, head_size=None, dueling=False)
    params = {name: torch.zeros(1, *shape) for name, shape in network.shapes().items()}
    weights: dict[str, dict[Any, float]] = {
        # gates i, f, g, o of the two units: rows 0 1, 2 3, 4 5, 6 7
        "lstm.bias": {0: SHUT, 1: SHUT, 2: OPEN, 3: SHUT, 6: OPEN, 7: OPEN},
        "lstm.w_ih": {(0, 1): OPEN - SHUT, (4, 0): 0.5},
        "lstm.w_hh": {},
        "head.adv.weight": {(0, 0): -1.0, (1, 0): 1.0},
    }
    for name in weights:
        for where, value in {**weights[name], **changes.get(name, {})}.items():
            params[name][0][where] = value
    return network, params


def agent(network: Any, params: dict[str, Tensor], memory: bool = True, **world: Any) -> Agent:
    members = next(iter(params.values())).shape[0]
    config = tiny(env="worlds:Recall-v0", env_args=world, members=members, memory=memory)
    return Agent(config, network, params, 0)


# unit 1 repeats the present cue; Q reads it alone
PRESENT = {
    "lstm.bias": {1: OPEN},
    "lstm.w_ih": {(5, 0): 0.5},
    "head.adv.weight": {(0, 0): 0, (0, 1): -1, (1, 0): 0, (1, 1): 1},
}
# unit 0 becomes 1 at the first step whatever the cue is, and opens unit 1's gate for the present cue
STARTED = {
    "lstm.bias": {1: SHUT}, "lstm.w_ih": {(4, 0): 0, (4, 1): 10.0, (5, 0): 0.5}, "lstm.w_hh": {(1, 0): -2 * SHUT},
    "head.adv.weight": PRESENT["head.adv.weight"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "options", "verdict", "words"),
    [
        ({}, {}, "used", "The agent uses its memory: return goes from 1 to 0.6"),
        # forgets at once
        ({"lstm.bias": {2: SHUT}}, {}, "none", "No use of memory found: return goes from 0.656 to 0.656"),
        ({}, {"memory": False}, "off", "No use of memory: this agent was trained and acts without it"),
        (PRESENT, {"shown": True}, "none", "No use of memory found: return goes from 1 to 1 with"),
        # keeps the first cue in a world that goes on showing it
        ({}, {"shown": True}, "redundant", "with that of the episode most alike at present it reaches 1 ("),
        (STARTED, {"shown": True}, "content-free", "the agent needs a state, but any will do"),
        # takes the opposite of what it remembers, where the present cue alone is right
        ({**PRESENT, "head.adv.weight": {(0, 0): 2, (0, 1): -1, (1, 0): -2, (1, 1): 1}}, {"shown": True}, "harmful",
         "the agent is better without it: return goes from 0 to 1"),
    ],
    ids=["memory", "forgetful", "off", "nothing to remember", "redundant", "started", "harmful"],
)  # fmt: skip
def test_the_sentence_is_true_of_agents_made_by_hand(changes, options, verdict, words) -> None:
    found = probe(agent(*by_hand(**changes), **options), episodes=64, seed=3)
    assert found.verdict == verdict, found.sentence
    assert words in found.sentence


def test_what_a_memory_agent_loses_by_hand() -> None:
    found = probe(agent(*by_hand(), delay=5), episodes=64, seed=3)
    assert np.array_equal(found.intact, np.ones((1, 64)))
    assert list(found.cleared) == list(found.swapped) == [1, 2, 4]
    # without a state it does action 0: right exactly where the cue was -1, whenever it was cleared
    zero = found.cleared[1]
    assert 0.3 < zero.mean() < 0.7
    assert all(np.array_equal(zero, scores) for scores in found.cleared.values())
    assert "clearing it every 4 steps still costs" in found.sentence
    assert found.to_dict()["cleared"][2]["cost"]["mean"] == pytest.approx(1 - zero.mean())
    # another's cue is as good as a coin
    for scores in found.swapped.values():
        assert 0.25 < scores.mean() < 0.75
    # Q at step t moves with the cue alone: k = t
    by_lag = found.influence[0]
    for window in by_lag:
        lags = np.flatnonzero(~np.isnan(window))
        assert window[lags[-1]] > 0.2
        assert (window[lags[:-1]] < 1e-3).all()


def test_the_longest_harmless_interval_follows_the_delay() -> None:
    found = probe(agent(*by_hand(), delay=2), episodes=64, seed=3)
    assert list(found.cleared) == [1, 2]
    assert "clearing it every 2 steps still costs" in found.sentence


def test_untrained_agents_have_no_use_of_memory() -> None:
    network = RecurrentQNetwork(2, 2, encoder=(8,), hidden_size=8, head_size=8)
    for seed in range(6):
        found = probe(agent(network, network.init([seed])), episodes=48, seed=seed)
        assert found.verdict not in ("used", "off")
        assert found.sentence.startswith("No use of memory found: ")


def test_several_members_share_the_episodes_and_the_interval_is_over_them() -> None:
    network, one = by_hand()
    _, other = by_hand(**{"lstm.bias": {2: SHUT}})
    params = {k: torch.cat((one[k], one[k], other[k])) for k in one}
    found = probe(agent(network, params), episodes=32, seed=3)
    assert found.intact.mean(axis=1).tolist()[:2] == [1.0, 1.0]
    costs = (found.intact - found.cleared[1]).mean(axis=1)
    assert costs[2] == 0.0
    assert found.cost(found.cleared[1]).high - costs.mean() == pytest.approx(4.303 * costs.std(ddof=1) / 3**0.5)
    alone = probe(agent(network, params), episodes=32, seed=3, member=2)
    assert alone.members == [2]
    assert np.array_equal(alone.intact[0], found.intact[2])
    assert np.array_equal(alone.influence[0], found.influence[2], equal_nan=True)
    with pytest.raises(ValueError, match="member is 3; expected 0 to 2"):
        probe(agent(network, params), member=3)
    with pytest.raises(ValueError, match="episodes is 1; expected at least 2"):
        probe(agent(network, params), episodes=1)


# ---- the verdict, of scores made up -------------------------------------------------------------------------------


def made_up(
    zeroed: float, swapped: float, intact: float = 1.0, random: float = 0.0, alike: float = 0.5, members: int = 1
) -> MemoryProbe:
    """Mean scores as given, with a spread of 0.1 between episodes, of which all disturbances share one half."""
    rng = np.random.default_rng(0)

    def scores(mean: float) -> np.ndarray:
        noise = rng.normal(0, 0.1, (members, 200))
        return mean + noise - noise.mean()

    return MemoryProbe(
        "w", 0, list(range(members)), True, "return", 0, scores(intact), scores(random)[:1], {1: scores(zeroed)},
        {1: scores(swapped)}, scores(alike), np.ones((members, 4, 1)),
    )  # fmt: skip


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ((0.5, 0.5), "used"), ((0.5, 1.0), "content-free"), ((1.0, 0.5), "misleading"), ((1.0, 1.0), "none"),
        ((1.5, 0.5), "harmful"), ((0.5, 0.5, 1.0, 1.0), "guessing"), ((0.5, 0.5, 1.0, 2.0), "guessing"),
        ((0.999, 0.999), "none"), ((0.5, 0.5, 1.0, 0.0, 1.0), "redundant"), ((1.0, 1.0, 1.0, 0.0, 0.5), "none"),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_intervals(figures, verdict, members) -> None:
    found = made_up(*figures, members=members)
    assert found.verdict == verdict
    assert found.sentence.startswith("The agent uses its memory" if verdict == "used" else "No use of memory found")
    assert "nan" not in found.sentence


def test_differences_are_taken_episode_by_episode() -> None:
    found = made_up(1.0, 1.0)
    hard = np.linspace(0, 100, 200)[None]  # episodes differ far more than the settings do
    paired = dataclasses.replace(
        found,
        intact=found.intact + hard,
        cleared={1: found.intact + hard - 0.1},
        swapped={1: found.intact + hard - 0.1},
        random=hard - 50,
        alike=found.intact + hard - 0.1,
    )
    assert paired.verdict == "used"
    assert paired.cost(paired.cleared[1]).low == pytest.approx(0.1, abs=1e-6)
    shuffled = dataclasses.replace(paired, cleared={1: paired.cleared[1][:, ::-1]})
    assert shuffled.verdict != "used", "control: without the pairs nothing shows"


# ---- the disturbances -----------------------------------------------------------------------------------------------


def states(actor: DisturbedActor) -> Tensor:
    return actor.h[:, :, 0].clone()


def test_swapping_gives_everybody_another_running_episodes_state() -> None:
    network, params = by_hand()
    params = {k: torch.cat((v, v)) for k, v in params.items()}
    actor = DisturbedActor(network, params, 6, how="swapped", every=2, memory=True, seed=0)
    first, blank = np.ones(12, bool), np.zeros((12, 2), np.float32)
    actor.h = actor.c = torch.zeros(2, 6, 2)
    cues = np.zeros((12, 2), np.float32)
    cues[:, 0], cues[:, 1] = np.tile(np.linspace(-1, 1, 6), 2) * np.repeat([1, 0.5], 6), 1.0
    actor.step(cues, None, first)
    own = states(actor)
    going = np.zeros(12, bool)
    ended = going.copy()
    ended[[4, 5, 6]] = True  # environments 4 and 5 of member 0, and 0 of member 1, begin another episode
    actor.step(blank, None, ended)  # step 1: left alone
    kept = states(actor)
    assert torch.allclose(kept[0, :4], own[0, :4], atol=1e-3)
    actor.step(blank, None, going)  # step 2: swapped before it
    now = states(actor)
    for p, running in ((0, [0, 1, 2, 3]), (1, [1, 2, 3, 4, 5])):
        assert torch.allclose(now[p, running].sort().values, kept[p, running].sort().values, atol=1e-3)
        assert (now[p, running] - kept[p, running]).abs().min() > 0.05, "somebody kept its own"
    before = states(actor)
    actor.step(blank, None, going)  # step 3: left alone again
    assert torch.allclose(states(actor), before, atol=1e-3)


def test_alike_gives_the_state_of_the_nearest_other_and_a_random_one_of_several() -> None:
    network, params = by_hand()
    taken = set()
    for seed in range(12):
        actor = DisturbedActor(network, params, 5, how="alike", every=1, memory=True, seed=seed)
        cues = np.array([[-1, 1], [-0.6, 1], [-0.2, 1], [0.2, 1], [0.6, 1]], np.float32)
        actor.step(cues, None, np.ones(5, bool))
        own = states(actor)[0]
        now = np.array([[0.5, 0], [0.0, 0], [0.6, 0], [0.1, 0], [0.0, 0]], np.float32)
        actor.step(now, None, np.zeros(5, bool))
        got = states(actor)[0]
        source = (got.unsqueeze(1) - own).abs().argmin(1).tolist()
        assert (got - own[source]).abs().max() < 1e-3
        assert source[0] == 2
        assert source[1] == 4
        assert source[2] == 0
        assert source[4] == 1
        taken.add(source[3])  # 1 and 4 look the same to it
    assert taken == {1, 4}


def test_the_last_one_running_does_not_keep_its_own_state() -> None:
    network, params = by_hand()
    for seed in range(8):
        actor = DisturbedActor(network, params, 3, how="swapped", every=1, memory=True, seed=seed)
        cues = np.array([[1, 1], [0.6, 1], [0.2, 1]], np.float32)
        actor.step(cues, None, np.ones(3, bool))
        actor.running[0] = [True, False, False]
        own = states(actor)
        actor.step(np.zeros((3, 2), np.float32), None, np.zeros(3, bool))
        assert (states(actor)[0, 0] - own[0, 0]).abs() > 0.05


def test_clearing_equals_a_reset_at_those_steps() -> None:
    network = RecurrentQNetwork(3, 4, encoder=(8,), hidden_size=8)
    params = network.init([1, 2])
    rng = np.random.default_rng(0)
    actor = DisturbedActor(network, params, 5, how="cleared", every=3, memory=True, seed=0)
    plain = DisturbedActor(network, params, 5, how="cleared", every=10**9, memory=True, seed=0)
    for t in range(8):
        obs, first = rng.normal(size=(10, 3)).astype(np.float32), np.full(10, t == 0)
        got, want = actor.step(obs, None, first).q, plain.step(obs, None, np.full(10, t % 3 == 0)).q
        assert torch.equal(got, want)


# ---- the influence --------------------------------------------------------------------------------------------------


def test_the_influence_is_the_gradient_and_ends_at_a_reset() -> None:
    network = RecurrentQNetwork(3, 4, encoder=(5,), hidden_size=6, head_size=7)
    params = {k: v * 3 for k, v in network.init([1, 2]).items()}
    generator = torch.Generator().manual_seed(0)
    P, N, T = 2, 9, 7
    obs = torch.randn(P, N, T, 3, generator=generator)
    h0, c0 = torch.randn(2, P, N, 6, generator=generator)
    reset = torch.zeros(P, N, T, dtype=torch.bool)
    reset[:, 3:6, 4] = True
    reset[:, 6:, 6] = True
    legal = torch.rand(P, N, 4, generator=generator) < 0.5
    legal[..., 0] |= ~legal.any(-1)
    got = influence(network, params, obs, h0, c0, reset, legal)
    assert got.shape == (P, N, T)
    # in float64, each step of time written out
    double = {k: v.double() for k, v in params.items()}
    x = network.encode(double, obs.double()).detach().requires_grad_()
    w = network.recurrent(double)
    y, _, _ = reference.lstm_unroll(x, h0.double(), c0.double(), w.w_ih, w.w_hh, w.bias, reset)
    q = reference.head(w, y[:, :, -1])
    q.masked_fill(~legal, -torch.inf).amax(-1).sum().backward()
    assert x.grad is not None
    assert torch.allclose(got.double(), x.grad.norm(dim=-1).flip(-1), rtol=1e-3, atol=1e-6)  # observed 2e-6
    assert (got[:, :3] > 0).all()
    assert (got[:, 3:6, 3:] == 0).all()
    assert (got[:, 3:6, :3] > 0).all()
    assert (got[:, 6:, 1:] == 0).all()


def test_recorded_windows_are_what_the_agent_went_through() -> None:
    """Unrolled from the window's first state they give the Q-values that the agent had, and end where they should."""
    seen: dict[tuple[int, int], Tensor] = {}

    class Noting(_WindowRecorder):
        def step(self, obs: Any, legal: Any, reset: Any) -> ops.ActOutput:
            t, out = self.steps, super().step(obs, legal, reset)
            for p, n in zip(*np.nonzero(self.ends == t), strict=True):
                seen[int(p), int(n)] = out.q[p, n].clone()
            return out

    network = RecurrentQNetwork(2, 2, encoder=(6,), hidden_size=6, head_size=None)
    params = {k: v * 2 for k, v in network.init([1, 2]).items()}
    ends = np.array([[0, 3, 4, 9, 11], [2, 5, 12, 1, 4]])
    for memory in (True, False):
        recorder = Noting(network, params, ends, 5, memory=memory)
        evaluate_actor(recorder, agent(network, params, delay=14).worlds, 1)
        r, w = recorder, network.recurrent(params)
        y, _, _ = ops.lstm_unroll(network.encode(params, r.obs), r.h0, r.c0, w.w_ih, w.w_hh, w.bias, r.reset)
        q = network.q_values(params, y[:, :, -1])
        assert len(seen) == 10
        for (p, n), expected in seen.items():
            assert torch.allclose(q[p, n], expected, atol=1e-5)
        out = influence(network, params, r.obs, r.h0, r.c0, r.reset, r.legal)
        inside = torch.arange(5) <= torch.from_numpy(ends).unsqueeze(-1)
        assert (out[~inside] == 0).all()
        assert bool((out[inside][1:] > 0).all()) is memory
        seen.clear()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_a_picture_and_a_sentence(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    flags = arguments(tiny(total_steps=80, final_eval_episodes=0, eval_env_args={"max_steps": 20}), "eval_env_args")
    assert main(["train", *flags, "--eval-env-args", "max_steps=20", "--run-dir", str(folder)]) == 0
    capsys.readouterr()
    assert main(["memory", str(folder), "--episodes", "6", "--seed", "5"]) == 0
    printed = capsys.readouterr().out.strip()
    found = json.loads((folder / "memory.json").read_text())
    assert found["sentence"] == printed
    assert (found["members"], found["episodes"], found["seed"], found["score"]) == ([0, 1], 6, 5, "survival")
    assert [s["every"] for s in found["cleared"]] == [s["every"] for s in found["swapped"]] == [1, 2, 4, 8, 16]
    assert [s["every"] for s in found["alike"]] == [1]
    assert found["influence"]["mean"][0] == pytest.approx(1.0)
    with Image.open(folder / "memory.png") as image:
        assert image.width > 800
        assert len(np.unique(np.asarray(image.convert("L")))) > 5
    other = ["--json", str(tmp_path / "m.json"), "--picture", str(tmp_path / "m.png"), "--member", "1"]
    newest = str(next((folder / "checkpoints").iterdir()))
    assert main(["memory", newest, "--episodes", "6", "--seed", "5", *other]) == 0
    alone = json.loads((tmp_path / "m.json").read_text())
    assert alone["members"] == [1]
    assert alone["intact"]["per_member"][0] == found["intact"]["per_member"][1]
    assert json.loads((folder / "memory.json").read_text()) == found
    assert {p.name for p in tmp_path.iterdir()} == {"run", "m.json", "m.png"}
    assert main(["memory", str(folder), "--member", "2"]) == 2
    assert "member is 2; expected 0 to 1" in capsys.readouterr().err
