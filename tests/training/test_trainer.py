"""The training loop: what is stored, when it learns, what evaluation leaves alone. Resuming is in test_resume.py."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from trees import same
from worlds import clock, tiny

from townlet import ops
from townlet.evaluate import training_seeds
from townlet.ops import ActorParams
from townlet.report import Agent
from townlet.runs.folder import process_mark
from townlet.runs.metrics import COLUMNS, read_metrics
from townlet.runs.resume import read_agent
from townlet.training import trainer as trainer_module
from townlet.training.trainer import Trainer


def epsilons(config):
    """The epsilon that each acting step really used, float64 [steps, P, E]."""
    run, used = Trainer(config), []
    act = run.population.act

    def spy(obs, reset, legal, epsilon):
        used.append(epsilon.clone())
        return act(obs, reset, legal, epsilon)

    run.population.act = spy
    run.train()
    return torch.stack(used)


def check_epsilon_decays(config):
    used = epsilons(config)
    steps = torch.arange(len(used)) * config.num_envs
    expected = 1.0 - 0.9 * (steps / config.epsilon_decay_steps).clamp(max=1.0)
    assert used[0].max() == 1.0
    assert used[-1].max() == pytest.approx(0.1)
    assert torch.allclose(used[:, 0, 0], expected.double())


def test_epsilon_really_decays(monkeypatch):
    config = clock(epsilon_end=0.1)
    check_epsilon_decays(config)
    monkeypatch.setattr(Trainer, "epsilon", lambda self: torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(AssertionError):  # the control: a schedule that nobody calls
        check_epsilon_decays(config)


def test_epsilon_per_member_and_along_the_ladder():
    used = epsilons(clock(epsilon_start=0.5, epsilon_end=(0.1, 0.2), epsilon_ladder=3.0))
    assert torch.allclose(used[0], 0.5 ** torch.tensor([1.0, 2.0, 3.0, 4.0]).double().expand(2, 4))
    assert torch.allclose(used[-1, 0], 0.1 ** torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    assert used[-1, 1, 0] == pytest.approx(0.2)
    assert epsilons(clock(epsilon_decay_steps=0, epsilon_end=0.3)).unique().tolist() == pytest.approx([0.3])


def test_reward_scale_reaches_learning_and_not_the_records():
    plain, scaled = (Trainer(clock(learning_starts=160, reward_scale=scale)) for scale in (1.0, 20.0))
    for run in (plain, scaled):
        run.train()
    sampled = [run.replay.sample(64) for run in (plain, scaled)]
    assert sampled[0].reward.abs().sum() > 0
    assert torch.equal(20.0 * sampled[0].reward, sampled[1].reward)
    assert same(plain.rollout.episodes.state_dict(), scaled.rollout.episodes.state_dict())


def test_learning_starts_and_replay_ratio_are_kept_exactly():
    """4 environments, 4 * (6 - 2) = 16 transitions per update: ratio 2 pays one in 8 steps, 20 several a step."""
    for ratio in (2, 20):
        run, log = Trainer(clock(replay_ratio=ratio)), []
        while run.env_steps < 160:
            run.act_step()
            run.learn()
            log.append((run.env_steps, run.updates))
        assert all(updates == max(0, (steps - 40) * ratio // 16) for steps, updates in log)
        assert log[-1] == (160, 120 * ratio // 16)
    slow = Trainer(clock(replay_ratio=0.1))
    slow.train()
    assert slow.updates == int(120 * 0.1 / 16)
    assert Trainer(clock(replay_ratio=0.0)).updates_due() == 0


@pytest.mark.parametrize("config", [clock(), tiny()], ids=["clock", "town"])
def test_the_stored_stream_is_what_happened(config):
    """A second world, taken through the recorded actions, tells every stored number; resets and masks sit right."""
    run = Trainer(config)
    seen = {"obs": [], "h": []}
    first = run.rollout.obs.clone()
    add = run.replay.add
    rows = []

    def spy(*args):
        rows.append([a if a is None else torch.as_tensor(a).clone() for a in args])
        add(*args)

    run.replay.add = spy
    run.train()
    world = run.make(config.env, 8, **config.stages[0][1])
    obs, legal = world.reset([s for p in range(2) for s in training_seeds(p, 4)])
    over, reset = np.zeros(8, bool), np.ones(8, bool)
    ends = 0
    assert torch.equal(first.flatten(0, 1), torch.from_numpy(obs))
    for stored_obs, stored_reset, stored_legal, h, _c, action, reward, terminated, mask in rows:
        assert np.array_equal(stored_obs.flatten(0, 1), obs)
        assert np.array_equal(stored_reset.flatten(), reset)
        assert legal is None or np.array_equal(stored_legal.flatten(0, 1), legal)
        assert np.array_equal(mask.flatten(), ~over)
        seen["h"].append(h)
        step = world.step(action.flatten().numpy())
        assert np.array_equal(reward.flatten(), step.reward)
        assert np.array_equal(terminated.flatten(), step.terminated)
        obs, legal, reset, over = step.obs, step.legal, over, step.terminated | step.truncated
        ends += int(over.sum())
    assert ends > 3 or config.is_town
    assert not seen["h"][0].any()
    assert seen["h"][1].any()


def test_stored_states_replay_to_the_acting_state():
    """A step of the network from one stored state gives the next: stored before the observation, reset applied."""
    run = Trainer(clock(replay_ratio=0.0))
    rows = []
    add = run.replay.add
    run.replay.add = lambda *args: (rows.append([a if a is None else a.clone() for a in args]), add(*args))
    run.train()
    population = run.population
    weights = run.network.recurrent(population.online)
    layers = run.network.layers(population.online)
    assert layers is not None
    packed = ops.pack_actor(ActorParams(layers, weights))
    for now, after in itertools.pairwise(rows):
        obs, reset, _, h, c = now[:5]
        out = ops.act(packed, obs, h, c, reset)
        assert torch.equal(out.h, after[3])
        assert torch.equal(out.c, after[4])
        with torch.no_grad():
            features = run.network.encode(population.online, obs)
            h, c = ops.lstm_step(features, h, c, *weights[:3], reset)
        assert torch.allclose(h, after[3], atol=1e-6)  # observed 9e-8
        assert torch.allclose(c, after[4], atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def end(**changes):
        run = Trainer(tiny(**changes))
        run.train()
        return run.state_dict()

    one = end()
    assert same(one, end())
    other = end(seed=5)
    assert not same(one["population"]["online"], other["population"]["online"])
    assert not same(one["obs"], other["obs"])


@pytest.mark.parametrize("prioritised", [False, True])
def test_members_together_follow_members_apart(prioritised):
    config = tiny(members=3, gamma=(0.9, 0.95, 0.99), lr=(1e-3, 2e-3, 3e-3), prioritised=prioritised, seed=4)
    together = Trainer(config)
    together.train()
    for p in range(3):
        apart = Trainer(tiny(members=1, gamma=config.gamma[p], lr=config.lr[p], prioritised=prioritised, seed=4 + p))
        apart.train()
        assert torch.equal(apart.rollout.obs[0], together.rollout.obs[p])
        for name, value in apart.population.online.items():
            # seen: 0 to 2e-7
            assert torch.allclose(value[0], together.population.online[name][p], atol=1e-5, rtol=1e-4), name
        wrong = apart.population.online["lstm.w_hh"][0] - together.population.online["lstm.w_hh"][(p + 1) % 3]
        assert wrong.abs().max() > 1e-2  # the control: another member is far away


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_average_of_the_weights_is_what_plays(tmp_path, monkeypatch, ema_decay):
    played = []
    honest = trainer_module.evaluate

    def spy(network, params, *rest, **options):
        played.append({name: value.detach().clone() for name, value in params.items()})
        return honest(network, params, *rest, **options)

    monkeypatch.setattr(trainer_module, "evaluate", spy)
    run = Trainer(tiny(ema_decay=ema_decay, eval_every=160, run_dir=str(tmp_path / "run")))
    run.train()
    files = (Agent.load(tmp_path / "run"), Agent.load(tmp_path / "run" / "agent.ckpt"))
    evaluated = [played[-1], Agent.of(run).params, *(agent.params for agent in files)]
    average, newest = run.population.averaged, run.population.online
    for params in evaluated:
        assert all(torch.equal(params[name], average[name]) for name in average)
    apart = any(not torch.allclose(average[name], newest[name], atol=1e-4) for name in newest)
    assert apart == (ema_decay > 0)


def test_evaluation_leaves_the_training_run_alone(monkeypatch):
    plain, watched = Trainer(tiny()), Trainer(tiny(eval_every=40))
    plain.train()
    watched.train()
    assert len(watched.evaluations) == 4
    trees = plain.state_dict(), watched.state_dict()
    for tree in trees:
        tree.pop("config")
    assert same(*trees)

    def careless(network, params, worlds, episodes, seed, **options):  # the control: evaluates with the acting state
        bad.population.act(bad.rollout.obs, bad.rollout.reset, bad.rollout.legal, torch.zeros(2, 4))
        return honest(network, params, worlds, episodes, seed, **options)

    honest = trainer_module.evaluate
    monkeypatch.setattr(trainer_module, "evaluate", careless)
    bad = Trainer(tiny(eval_every=40))
    bad.train()
    tree = bad.state_dict()
    tree.pop("config")
    assert not same(trees[0], tree)


def test_learning_leaves_the_acting_state_alone():
    run = Trainer(clock())
    while run.env_steps < 80:
        run.act_step()
    h, c = (v.clone() for v in run.population.state)
    obs, before = run.rollout.obs.clone(), run.population.online_flat.clone()
    run.learn()
    assert run.updates > 0
    assert not torch.equal(before, run.population.online_flat)
    assert torch.equal(run.population.state[0], h)
    assert torch.equal(run.population.state[1], c)
    assert torch.equal(run.rollout.obs, obs)
    assert h.any()


def test_the_memoryless_control_carries_nothing():
    run = Trainer(clock(memory=False, eval_every=80))
    run.train()
    assert not run.population.state[0].any()
    assert run.updates > 0
    weight = run.population.online["lstm.w_hh"]
    assert torch.equal(weight, run.network.init([0, 1])["lstm.w_hh"])  # nothing is learned about a state there is not
    with_memory = Trainer(clock())
    with_memory.train()
    assert not torch.equal(with_memory.population.online["lstm.w_hh"], weight)


@pytest.mark.parametrize("network", ["mlp", "spatial"])
def test_settings_reach_the_parts(network):
    config = tiny(network=network, tau=0.5, stride=3, prioritised=True, alpha=0.7, beta=0.3, huber_delta=2.0, eta=0.5)
    run = Trainer(config)
    assert (run.replay.stride, run.replay.alpha, run.replay.beta, run.replay.prioritised) == (3, 0.7, 0.3, True)
    assert (run.learner.tau, run.learner.sync_every, run.learner.spec.eta) == (0.5, 1, 0.5)
    assert type(run.network).__name__ == {"mlp": "RecurrentQNetwork", "spatial": "RecurrentSpatialQNetwork"}[network]
    run.train()
    assert run.updates == 15


@pytest.mark.parametrize("memory", [True, False])
def test_the_chrono_span_is_in_the_first_weights_of_agents_with_memory(memory):
    run = Trainer(clock(memory=memory, chrono_span=30))
    fresh = run.network.init([0, 1], 30 if memory else None)
    assert torch.equal(run.population.online["lstm.bias"], fresh["lstm.bias"])


@pytest.mark.parametrize("memory", [True, False])
def test_bfloat16_reaches_the_update_alone(memory):
    """The first update differs in bits and little else; acting and the stored weights stay float32."""
    exact, rounded = (Trainer(tiny(memory=memory, compute_dtype=t)) for t in ("float32", "bfloat16"))
    for run in (exact, rounded):
        while run.updates_due() == 0:
            run.act_step()
    assert torch.equal(exact.rollout.obs, rounded.rollout.obs)
    assert torch.equal(exact.population.state[0], rounded.population.state[0])
    want, got = (run.learner.update()["loss"] for run in (exact, rounded))
    assert not torch.equal(want, got)
    torch.testing.assert_close(want, got, rtol=5e-3, atol=0.0)  # observed 6e-4
    rounded.train()
    assert rounded.population.online_flat.dtype == torch.float32
    assert rounded.population.online_flat.isfinite().all()


def test_memory_is_stated_before_it_is_taken():
    lines = []
    Trainer(clock(), say=lines.append)
    assert "memory: replay" in lines[0]
    assert "MiB" in lines[0]
    assert "2 x 4 streams of 99 steps" in lines[0]
    with pytest.raises(
        ValueError, match=r"capacity is 10000000000000, so .* need .* GiB; expected at most the .* of this machine"
    ):
        Trainer(clock(capacity=10**13))


def test_a_run_folder_holds_its_records(tmp_path):
    run = Trainer(clock(run_dir=str(tmp_path / "run"), eval_every=80, checkpoint_every=80))
    run.train()
    names = {p.name.split(".")[0] if "tfevents" in p.name else p.name for p in run.folder.iterdir()}
    written = {"config.yaml", "metrics.csv", "events", "agent.ckpt", "status.json", "sessions.json", "report.html"}
    assert names == written | {"checkpoints"}
    assert [p.name for p in sorted((run.folder / "checkpoints").iterdir())] == [
        "step_000000000080.ckpt",
        "step_000000000160.ckpt",
    ]
    rows = read_metrics(run.folder / "metrics.csv")
    assert [(r["step"], r["member"]) for r in rows] == [(s, m) for s in (40, 80, 120, 160) for m in (0, 1)]
    first, last = rows[0], rows[-1]
    assert np.isnan(first["loss"])
    assert np.isfinite([last[k] for k in ("loss", "grad_norm", "q", "td_error")]).all()
    assert last["updates"] == 15
    assert last["epsilon"] == pytest.approx(0.05)
    assert last["eval_return"] >= 0
    assert all(last[f"{phase}_s"] > 0 for phase in ("act", "env", "replay", "update", "eval"))
    assert 3 <= last["train_length"] <= 7
    assert last["train_return"] <= last["train_length"]
    total = sum(r["episodes"] for r in rows if r["member"] == 0)
    assert total * 3 <= 160 <= (total + 4) * 8
    with pytest.raises(ValueError, match="exists; a run is never overwritten"):
        Trainer(clock(run_dir=str(tmp_path / "run")))


def test_a_run_gives_signs_of_life(tmp_path):
    run = Trainer(clock(run_dir=str(tmp_path / "run"), total_steps=400, eval_every=80))
    signs, agents = [], []

    def look():
        if run.env_steps > 4:
            signs.append(json.loads((run.folder / "status.json").read_text()))
        agents.append(read_agent(run.folder / "agent.ckpt")["env_steps"] if run.env_steps > 80 else 0)
        act()

    act, run.act_step = run.act_step, look
    run.train()
    assert {s["state"] for s in signs} == {"training"}
    assert 4 <= signs[0]["step"] <= 8
    assert signs[0]["process"] == process_mark(os.getpid()) is not None
    assert set(agents) == {0, 80, 160, 240, 320}  # each evaluation leaves its agent; the only checkpoint is the last
    end = json.loads((run.folder / "status.json").read_text())
    assert (end["state"], end["step"], end["updates"]) == ("trained", 400, run.updates)
    agent = read_agent(run.folder / "agent.ckpt")
    assert agent["config"] == run.config.to_dict()
    assert same(agent["weights"], run.state_dict()["population"]["average"])


def test_a_process_is_told_from_another_with_its_number():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    running = process_mark(child.pid)
    assert running is not None
    assert running != process_mark(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_mark(child.pid) is None  # killed, though its parent has not taken notice
    child.communicate()
    assert process_mark(child.pid) is None


@pytest.mark.parametrize("config", [clock(lr=(1e-3, 2e-3)), tiny(lr_decay_steps=100)], ids=["clock", "town"])
def test_the_last_record_tells_how_the_run_stands(tmp_path, config):
    run = Trainer(replace(config, run_dir=str(tmp_path / "run"), capacity=800, eval_every=0))
    shown, updates = [], []
    act, update = run.population.act, run.learner.update
    run.population.act = lambda *given: (shown.append(copy.deepcopy(given[2])), act(*given))[1]
    run.learner.update = lambda: (updates.append((run.env_steps, update())), updates[-1][1])[1]
    run.train()
    legal = shown[-1]
    rows = read_metrics(run.folder / "metrics.csv")
    h, c = run.population.state
    for p, row in enumerate(rows[-2:]):
        q = run.population._acted[0][p].clone()
        if legal is not None:
            assert not legal[p].all()
            q[~legal[p]] = -100.0
        recent = [metrics for step, metrics in updates if step > 120]
        expected = {
            "h_norm": h[p].square().sum(-1).sqrt().mean(),
            "c_norm": c[p].square().sum(-1).sqrt().mean(),
            "q_max": q.max(-1).values.mean(),
            "lr": config.per_member("lr")[p],
            "lr_now": config.per_member("lr")[p] * (config.lr_end if config.lr_decay_steps == 100 else 1.0),
            "replay_fill": 160 / (run.replay.ring * 4),
        } | {name: torch.stack([m[name][p] for m in recent]).mean() for name in recent[0]}
        assert {k: row[k] for k in expected} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)
    assert rows[-1]["replay_fill"] < 0.25 < rows[-1]["h_norm"]
    assert set(rows[-1]) == set(COLUMNS)


def test_an_evaluation_is_recorded_once_at_its_step(tmp_path):
    run = Trainer(clock(run_dir=str(tmp_path / "run"), eval_every=50, log_every=30))
    run.train()
    rows = [r for r in read_metrics(run.folder / "metrics.csv") if r["member"] == 0]
    assert [r["step"] for r in rows if np.isfinite(r["eval_return"])] == [52, 100, 152]
    assert [r["step"] for r in rows] == [32, 52, 60, 92, 100, 120, 152, 160]


def test_training_statistics_count_episodes_exactly():
    """With perfect play in the Clock, return equals length; autoreset steps must not count."""
    run = Trainer(clock(epsilon_start=0.0, epsilon_end=0.0, replay_ratio=0.0))
    run.population.act = lambda obs, reset, legal, epsilon: (obs[..., 0] % 2).long()
    while run.env_steps < 160:
        run.act_step()
    means = run.rollout.episodes.drain()
    assert np.array_equal(means["train_return"], means["train_length"])
    assert (means["episodes"] > 10).all()
    assert np.isnan(run.rollout.episodes.drain()["train_return"]).all()


def test_a_fault_of_the_world_stops_the_run_by_name():
    with pytest.raises(ValueError, match="Clock-v0: observation of environment 0 at step 10 is not finite"):
        Trainer(clock(env="Clock-v0", env_args={"fault_at": 9})).train()


def test_weights_that_are_not_finite_stop_the_run(tmp_path):
    run = Trainer(clock(run_dir=str(tmp_path / "run")))
    run.population.online_flat[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"member 0 .*not finite"):
        run.train()


def test_an_operator_can_be_handed_in():
    calls = []

    def counted(*args):
        calls.append(1)
        return ops.td_unroll(*args)

    run = Trainer(clock(), td_unroll=counted)
    run.train()
    assert len(calls) == run.updates == 15


def test_the_curriculum_changes_the_training_worlds_and_nothing_else():
    config = tiny(total_steps=120, curriculum=["0 size=4", "40 size=5 depletion=1.0", "80"])
    run = Trainer(config)
    seen = []
    act_step = run.act_step

    def spy():
        args = run.rollout.worlds.env.args
        seen.append((run.env_steps, args.size, args.depletion, run.evaluation_worlds(1).env.args.size))
        act_step()

    run.act_step = spy
    run.train()
    steps, sizes, depletions, evaluated = zip(*seen, strict=True)
    assert sizes == tuple(4 if n < 40 else 5 if n < 80 else 8 for n in steps)
    assert depletions == tuple(1.0 if 40 <= n < 80 else 1.5 for n in steps)
    assert set(evaluated) == {8}


def test_a_stage_cuts_the_running_episodes_as_truncated():
    run = Trainer(tiny(total_steps=44, replay_ratio=0.0, curriculum=["0 size=4", "40 size=5"]))
    rows = []
    add = run.replay.add
    run.replay.add = lambda *args: (rows.append([a.clone() for a in args]), add(*args))
    run.train()
    _obs, _reset, _legal, _h, _c, _action, _reward, terminated, mask = rows[10]  # added by the change, after 10 steps
    assert not mask.any()
    assert not terminated.any()
    assert rows[11][1].all()  # then every environment opens an episode
    assert len(rows) == 12


@pytest.mark.parametrize(
    ("shape", "factor"), [("linear", lambda done: 1 - 0.9 * done), ("exponential", lambda done: 0.1**done)]
)
def test_the_learning_rate_falls_and_stays(shape, factor):
    run = Trainer(tiny(lr=(1e-3, 2e-3), lr_decay=shape, lr_end=0.1, lr_decay_steps=100))
    rates = {}
    update = run.learner.update
    run.learner.update = lambda: (rates.setdefault(run.env_steps, run.population.lr.clone()), update())[1]
    run.train()
    for step, rate in rates.items():
        expected = torch.tensor([1e-3, 2e-3]) * factor(min(1.0, step / 100))
        torch.testing.assert_close(rate, expected)
    assert min(rates) < 100 < max(rates)
