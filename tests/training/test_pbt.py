"""Population based training: who copies whom, what is copied, what is explored; a resumed run repeats it all."""

from __future__ import annotations

import csv
import math

import numpy as np
import pbt as benchmark
import pytest
import torch
from trees import same
from worlds import clock, tiny

from townlet.learning.population import VectorizedPopulation
from townlet.runs import checkpoint
from townlet.settings.config import Config
from townlet.training.pbt import PopulationBasedTraining, truncation
from townlet.training.trainer import Trainer


def pbt_of(members=4, seed=0, **changes):
    initial = {"lr": [1e-4, 1e-3, 1e-2, 1e-1][:members], "gamma": [0.9, 0.95, 0.98, 0.99][:members]}
    return PopulationBasedTraining(
        initial, **{"seed": seed, "fraction": 0.25, "perturb": 1.25, "resample": 0.0, **changes}
    )


def hyper_of(pbt, **changes):
    return {"lr": np.array([1e-4, 1e-3, 1e-2, 1e-1]), "gamma": np.array([0.9, 0.95, 0.98, 0.99]), **changes}


# ---- selection ------------------------------------------------------------------------------------------------------


def test_the_worst_copy_the_best_and_nobody_else_changes():
    scores = np.array([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0])
    assert truncation(scores, 0.25, np.zeros(8)) == [(1, 6), (5, 6)]
    assert truncation(scores, 0.25, np.full(8, 0.99)) == [(1, 2), (5, 2)]
    assert truncation(scores, 0.01, np.zeros(8)) == [(1, 2)]  # one at least
    assert len(truncation(scores, 0.5, np.zeros(8))) == 4
    assert truncation(np.ones(4), 0.5, np.zeros(4)) == []  # no better parent: nothing to copy
    assert truncation(np.array([1.0, 1.0, 2.0]), 0.34, np.zeros(3)) == [(0, 2)]


def test_nothing_happens_while_a_member_has_no_score():
    pbt = pbt_of(fraction=0.5)
    hyper = hyper_of(pbt)
    for event in range(20):
        assert pbt.step(event, 100, np.array([1.0, math.nan, 2.0, 3.0]), hyper) == [[], []]
    assert same(hyper, hyper_of(pbt))
    assert pbt.lineage == []


# ---- exploration ----------------------------------------------------------------------------------------------------


def test_copied_hyper_parameters_are_the_parents_times_the_factor_or_its_inverse():
    seen = set()
    for event in range(40):
        pbt = pbt_of()
        hyper = hyper_of(pbt)
        assert pbt.step(event, 100, np.array([4.0, 3.0, 2.0, 1.0]), hyper) == [[3], [0]]
        assert hyper["lr"][:3].tolist() == [1e-4, 1e-3, 1e-2]
        lr, horizon = hyper["lr"][3] / 1e-4, (1 - hyper["gamma"][3]) / 0.1
        assert min(abs(lr - 1.25), abs(lr - 0.8)) < 1e-12
        assert min(abs(horizon - 1.25), abs(horizon - 0.8)) < 1e-12
        seen.add((round(lr, 2), round(horizon, 2)))
    assert len(seen) == 4  # each way, apart from each other


def test_resampled_values_lie_between_the_initial_ones_evenly_in_the_logarithm():
    values = []
    for event in range(400):
        pbt = pbt_of(resample=1.0)
        hyper = hyper_of(pbt)
        pbt.step(event, 100, np.array([1.0, 2.0, 3.0, 4.0]), hyper)
        values.append((hyper["lr"][0], hyper["gamma"][0]))
    lr, gamma = np.array(values).T
    assert lr.min() >= 1e-4
    assert lr.max() <= 1e-1
    assert gamma.min() >= 0.9
    assert gamma.max() <= 0.99
    assert np.mean(np.log10(lr)) == pytest.approx(-2.5, abs=0.15)
    mixed = 0
    for event in range(400):
        pbt = pbt_of(resample=0.25)
        hyper = hyper_of(pbt)
        pbt.step(event, 100, np.array([1.0, 2.0, 3.0, 4.0]), hyper)
        mixed += min(abs(hyper["lr"][0] / 0.1 - 1.25), abs(hyper["lr"][0] / 0.1 - 0.8)) > 1e-9
    assert mixed / 400 == pytest.approx(0.25, abs=0.07)


def test_epsilon_does_not_pass_one_and_gamma_stays_below_it():
    pbt = PopulationBasedTraining(
        {"epsilon_end": [0.9, 0.95], "gamma": [0.0, 0.5]}, seed=0, fraction=0.5, perturb=1.25, resample=0.0
    )
    for event in range(60):
        hyper = {"epsilon_end": np.array([0.9, 0.95]), "gamma": np.array([0.5, 0.01])}
        pbt.step(event, 1, np.array([0.0, 1.0]), hyper)
        assert 0 < hyper["epsilon_end"][0] <= 1
        assert 0 <= hyper["gamma"][0] < 1


def test_draws_depend_on_seed_and_event_alone():
    def after(seed, event, *before):
        pbt = pbt_of(seed=seed, resample=0.5, fraction=0.5)
        hyper = hyper_of(pbt)
        for earlier in before:
            pbt.step(earlier, 1, np.array([4.0, 3.0, 2.0, 1.0]), hyper_of(pbt))
        pbt.step(event, 1, np.array([1.0, 2.0, 3.0, 4.0]), hyper)
        return hyper

    assert same(after(0, 7), after(0, 7, 1, 2, 3))
    assert not same(after(0, 7), after(0, 8))
    assert not same(after(0, 7), after(1, 7))


# ---- what is copied -------------------------------------------------------------------------------------------------


def grown():
    """A trainer of 4 members a moment before an event in which member 2 copies member 1."""
    own = {"lr": "log:1e-4:1e-2", "gamma": "lin:0.5:0.9", "clip_norm": "lin:1:9", "epsilon_end": "lin:0.1:0.4"}
    run = Trainer(clock(members=4, ema_decay=0.5, pbt_every=160, pbt_explore=list(own), **own))
    while run.env_steps < 160:
        run.act_step()
        run.learn()
    run.rollout.episodes.recent[:] = [2.0, 4.0, 1.0, 3.0]
    return run


def members_of(run):
    """name -> [P, ...] of all that training reads."""
    p = run.population
    packed = (*p.packed_target.params, p.packed_target.panels)
    out = {"online": p.online_flat, "average": p.average_flat, "target": p.target_flat}
    out |= {"adam_m": p.adam_m, "adam_v": p.adam_v}
    out |= {f"packed {i}": v for i, v in enumerate(packed) if v is not None}
    return {name: v.detach().clone() for name, v in out.items()}


def check_copy():
    run = grown()
    before, replay = members_of(run), {k: v.clone() for k, v in run.replay._data.items()}
    h = run.population.state[0].clone()
    assert all(bool(before[name][2].any()) for name in before)
    assert bool(h[2].any())
    run._exploit_and_explore()
    after = members_of(run)
    for name, was in before.items():
        assert torch.equal(after[name][2], was[1]), name
        assert not torch.equal(was[2], was[1]), name
        assert torch.equal(after[name][[0, 1, 3]], was[[0, 1, 3]]), name
    for state, was in zip(run.population.state, (h, None), strict=True):
        assert not state[2].any()
        assert was is None or torch.equal(state[[0, 1, 3]], was[[0, 1, 3]])
    assert same(replay, run.replay._data)
    assert run.rollout.episodes.recent.tolist() == [2.0, 4.0, 4.0, 3.0]
    row = run.pbt.lineage[-1]
    assert (row["member"], row["parent"], row["step"], row["event"]) == (2, 1, 160, 1)
    assert (row["score"], row["parent_score"]) == (1.0, 4.0)
    hyper = run.schedules.hyper
    assert row["lr_parent"] == hyper["lr"][1]
    assert row["lr_after"] == hyper["lr"][2] != row["lr_before"]
    # the new values are where they act: in Adam, in the operator's discounts and in the actions
    assert run.population.clip_norm.tolist() == pytest.approx(hyper["clip_norm"].tolist())
    assert run.epsilon()[:, 0].tolist() == pytest.approx(hyper["epsilon_end"].tolist())
    assert run.population.lr.tolist() == pytest.approx(hyper["lr"].tolist())
    assert run.learner.spec.gamma.tolist() == pytest.approx(hyper["gamma"].tolist())
    # and the member acts as its parent does
    obs = run.rollout.obs[1:2].expand(4, -1, -1)
    run.population.reset_state()
    action = run.population.act(obs, torch.zeros(4, 4, dtype=torch.bool), None, 0.0)
    assert torch.equal(action[2], action[1])


def test_a_copy_is_whole():
    check_copy()


def _copy_but(**missing):
    """copy_members that leaves something out."""
    whole = VectorizedPopulation.copy_members

    def broken(self, members, parents):
        kept = {
            name: getattr(self, name).detach().clone()
            for name in ("online_flat", "average_flat", "target_flat", "adam_m", "adam_v")
        }
        h, c = self.state
        whole(self, members, parents)
        with torch.no_grad():
            for name in kept:
                if name in missing:
                    getattr(self, name)[members] = kept[name][members]
            if "state" in missing:
                self._h, self._c = h, c
            if "target_flat" in missing:
                self._pack_target()

    return broken


def _copy_unpacked(self, members, parents):
    pack = self._pack_target
    self._pack_target = lambda: None
    WHOLE(self, members, parents)
    self._pack_target = pack


WHOLE = VectorizedPopulation.copy_members

BROKEN = {
    "online weights": (VectorizedPopulation, "copy_members", _copy_but(online_flat=1)),
    "average": (VectorizedPopulation, "copy_members", _copy_but(average_flat=1)),
    "target": (VectorizedPopulation, "copy_members", _copy_but(target_flat=1)),
    "packed target": (VectorizedPopulation, "copy_members", _copy_unpacked),
    "first moments": (VectorizedPopulation, "copy_members", _copy_but(adam_m=1)),
    "second moments": (VectorizedPopulation, "copy_members", _copy_but(adam_v=1)),
    "acting state": (VectorizedPopulation, "copy_members", _copy_but(state=1)),
    "hyper-parameters": (PopulationBasedTraining, "_explore", lambda self, name, value, choice, where: value * 0 + 0.5),
    "the wrong way round": (VectorizedPopulation, "copy_members", lambda self, a, b: WHOLE(self, b, a)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_copy_without_a_part_is_noticed(monkeypatch, what):
    """Controls of the test above."""
    owner, name, broken = BROKEN[what]
    monkeypatch.setattr(owner, name, broken)
    if what == "hyper-parameters":  # not from the parent
        with pytest.raises(AssertionError):
            test_copied_hyper_parameters_are_the_parents_times_the_factor_or_its_inverse()
        return
    with pytest.raises(AssertionError):
        check_copy()


def test_copy_members_refuses_a_parent_that_is_overwritten():
    run = Trainer(clock(members=4))
    with pytest.raises(ValueError, match=r"parents is \[1, 2\]; expected one for each of \[0, 1\], none among them"):
        run.population.copy_members([0, 1], [1, 2])


# ---- in a run -------------------------------------------------------------------------------------------------------

RUNS = {
    "town": lambda **c: tiny(
        members=4, lr="log:1e-4:1e-2", gamma="lin:0.8:0.95", epsilon_end="lin:0.05:0.3", clip_norm="lin:1:9",
        pbt_every=40, pbt_score="eval", pbt_explore=["lr", "gamma", "epsilon_end", "clip_norm"], prioritised=True, **c
    ),
    "clock": lambda **c: clock(members=4, lr="log:1e-4:1e-2", pbt_every=24, lr_end=0.1, lr_decay_steps=240, **c),
}  # fmt: skip


def run_whole(make):
    run = Trainer(make(total_steps=240))
    run.train()
    return run.state_dict()


def run_halves(make, folder, spoil=None):
    Trainer(make(total_steps=120, run_dir=str(folder))).train()
    if spoil is not None:
        path = checkpoint.latest(folder / "checkpoints")
        tree = checkpoint.read_file(path)
        spoil(tree)
        checkpoint.write_file(path, tree)
    second = Trainer.resume(folder, {"total_steps": 240})
    second.train()
    return second.state_dict()


def but_config(tree):
    return {k: v for k, v in tree.items() if k != "config"}


@pytest.fixture(scope="module")
def whole():
    return {name: but_config(run_whole(make)) for name, make in RUNS.items()}


@pytest.mark.parametrize("case", RUNS)
def test_train_2n_is_train_n_save_load_train_n_with_events_in_both_halves(tmp_path, case, whole):
    steps = [row["step"] for row in whole[case]["pbt"]["lineage"]]
    assert min(steps) < 120 <= max(steps)
    assert same(whole[case], but_config(run_halves(RUNS[case], tmp_path / "run")))


SPOILED = {
    "hyper-parameters": lambda tree: tree["hyper"]["lr"].__imul__(2.0),
    "lineage": lambda tree: tree["pbt"].update(lineage=[]),
    "scores": lambda tree: tree["episodes"].update(recent=tree["episodes"]["recent"][::-1].copy()),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_a_checkpoint_holds_for_it_matters(tmp_path, what, whole):
    """Controls of the test above."""
    assert not same(whole["clock"], but_config(run_halves(RUNS["clock"], tmp_path / "run", SPOILED[what])))


def test_an_event_number_off_by_one_is_noticed(monkeypatch, tmp_path, whole):
    """A control: a resumed run that counts its events afresh draws other numbers."""
    step = PopulationBasedTraining.step
    monkeypatch.setattr(PopulationBasedTraining, "step", lambda self, event, *rest: step(self, event + 1, *rest))
    assert not same(whole["clock"], but_config(run_halves(RUNS["clock"], tmp_path / "run")))


def test_events_fall_on_their_steps_after_learning_began_and_not_at_the_end(tmp_path):
    run, events = Trainer(clock(members=4, pbt_every=24, total_steps=240, run_dir=str(tmp_path / "run"))), []
    run.pbt.step = lambda event, steps, scores, hyper: events.append((event, steps)) or [[], []]
    run.train()
    assert events == [(n, 24 * n) for n in range(2, 10)]  # 40 steps fill replay; step 240 is the end


def test_without_pbt_every_nothing_of_it_happens(tmp_path):
    run = Trainer(clock(members=4, run_dir=str(tmp_path / "run")))
    run.train()
    assert not (tmp_path / "run" / "lineage.csv").exists()
    assert run.pbt.lineage == []


def test_the_lineage_file_holds_every_copy_and_is_whole_after_a_resume(tmp_path):
    tree = run_halves(RUNS["clock"], tmp_path / "run")
    with open(tmp_path / "run" / "lineage.csv", newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == tree["pbt"]["lineage"]
    assert {row["step"] for row in rows} >= {48, 216}
    for row in rows:
        assert row["score"] < row["parent_score"]
        assert row["member"] != row["parent"]


def test_copies_made_after_the_checkpoint_leave_the_lineage_file_on_resuming(tmp_path):
    Trainer(RUNS["clock"](total_steps=100, run_dir=str(tmp_path / "run"))).train()
    path = tmp_path / "run" / "lineage.csv"
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1] + "\n")
    Trainer.resume(tmp_path / "run", {"total_steps": 108}).train()  # no event before step 120
    assert path.read_text() == text
    assert len(text.splitlines()) > 1


def test_a_greedy_evaluation_decides_where_asked():
    run = Trainer(clock(members=4, pbt_every=80, pbt_score="eval", total_steps=120))
    run.train()
    assert [step for step, _ in run.evaluations] == [80]
    means = run.evaluations[0][1].score.mean(axis=1)
    assert [row["parent_score"] for row in run.pbt.lineage] == ([means.max()] if means.max() > means.min() else [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"members": 1, "pbt_every": 9}, "members is 1; expected at least 2 for population based training"),
        ({"pbt_fraction": 0.6}, "pbt_fraction is 0.6; expected above 0 and at most 0.5"),
        ({"pbt_score": "luck"}, "pbt_score is 'luck'; expected train or eval"),
        ({"pbt_explore": ["lr", "seed"]}, r"pbt_explore is \('lr', 'seed'\); expected some of"),
        ({"pbt_explore": []}, r"pbt_explore is \(\); expected some of"),
        ({"pbt_perturb": 0}, "pbt_perturb is 0.0; expected above 0"),
        ({"pbt_resample": 1.5}, "pbt_resample is 1.5; expected between 0 and 1"),
        ({"pbt_every": 9, "gamma": 1.0, "pbt_explore": ["gamma"]}, "gamma is 1.0; expected below 1 where pbt_explore"),
        (
            {"pbt_every": 9, "epsilon_end": 0, "pbt_explore": ["epsilon_end"]},
            r"epsilon_end is 0.0; expected above 0 where",
        ),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"members": 4, **values})


def test_a_foreign_checkpoint_is_refused(tmp_path):
    def spoil(tree):
        tree["hyper"]["lr"] = tree["hyper"]["lr"][:1]

    with pytest.raises(ValueError, match="hyper holds"):
        run_halves(RUNS["clock"], tmp_path / "run", spoil)


def test_the_benchmark_runs():
    """benchmarks/pbt.py, cut down; its figures are in docs/guides/populations.md."""
    sizes = {"total_steps": 1_500, "members": 4, "num_envs": 4, "lr": benchmark.SPREADS["wide"], "threads": 1}
    returns, lr, copies = benchmark.run(Config.from_dict({**benchmark.SETTINGS, **sizes, "pbt_every": 250}))
    assert len(returns) == len(lr) == 4
    assert copies > 0
    assert lr != [1e-6, 4.64159e-05, 0.00215443, 0.1]
