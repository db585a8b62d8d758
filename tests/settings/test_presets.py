"""Presets lie between defaults and what is given, fit any world, and are documented number by number; ranges of values
over members."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from command_line import flags
from paths import ROOT
from worlds import clock

from townlet import ops
from townlet.cli import main
from townlet.settings.config import Config
from townlet.settings.presets import ELSEWHERE, PRESETS, table, table_elsewhere
from townlet.training.trainer import Trainer

DOCS = ROOT / "docs" / "guides" / "presets.md"


# ---- presets --------------------------------------------------------------------------------------------------------


def test_a_preset_lies_between_defaults_and_yaml_and_yaml_below_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("preset: r2d2\nenv: CartPole-v1\nn_step: 4\nbatch_size: 9\n")
    config = Config.from_yaml(path, flags("--batch-size", "10"))
    assert (config.n_step, config.batch_size) == (4, 10)
    assert (config.alpha, config.burn_in, config.loss) == (0.9, 20, "mse")
    assert config.huber_delta == Config().huber_delta
    other = Config.from_yaml(path, flags("--preset", "drqn"))
    assert (other.stored_state, other.n_step, other.prioritised) == (False, 4, False)
    assert Config.from_preset("r2d2", env="CartPole-v1", n_step=4, batch_size=10) == config


def test_the_command_without_a_preset_means_fast_and_fast_in_the_town_means_the_defaults():
    assert Config.from_dict({}) == Config.from_preset("fast") == Config()
    assert Config.from_dict({"env": "CartPole-v1"}) == Config.from_preset("fast", env="CartPole-v1")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_everywhere_and_says_what_it_lists(name):
    for given in ({}, {"env": "X-v0"}, {"env": "X-v0", "total_steps": 20_000}, {"env": "X-v0", "num_envs": 200}):
        config = Config.from_preset(name, **given)  # or ValueError
        for setting, choice in PRESETS[name].items():
            assert getattr(config, setting) == choice.value
            assert choice.source
        assert config.learning_starts < config.total_steps
    names = {f.name for f in fields(Config)}
    assert set(PRESETS[name]) <= names
    assert set(ELSEWHERE) <= names
    assert Config.from_preset(name).total_steps == Config().total_steps  # the Town keeps its curriculum's length


def test_lengths_in_other_worlds_follow_total_steps():
    config = Config.from_dict({"env": "X-v0", "total_steps": 30_000, "eval_every": 7})
    assert config.eval_every == 7
    assert (config.learning_starts, config.epsilon_decay_steps, config.lr_decay_steps) == (3_000, 3_000, 30_000)
    assert (config.capacity, config.log_every, config.checkpoint_every) == (30_000, 600, 6_000)
    long = Config.from_dict({"env": "X-v0"})
    assert (long.total_steps, long.learning_starts, long.capacity, long.num_envs) == (500_000, 5_000, 200_000, 16)
    given = {setting: getattr(long, setting) for setting in ELSEWHERE}
    assert Config.from_dict({"env": "X-v0", **given}) == long  # the table names all that differs


@pytest.mark.parametrize("wrong", [{"total_steps": "many"}, {"total_steps": True}, {"total_steps": 0}, {"seq_len": []}])
def test_a_wrong_length_is_named_all_the_same(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Config.from_dict({"env": "X-v0", **wrong})


def test_the_page_shows_the_code():
    text = DOCS.read_text(encoding="utf-8")
    assert table("drqn") in text
    assert table("r2d2") in text
    assert table_elsewhere() in text
    assert table("r2d2").replace("0.997", "0.99") not in text  # the control


def test_the_command_shows_them(capsys):
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PRESETS)
    assert main(["presets", "drqn"]) == 0
    assert table("drqn") in capsys.readouterr().out
    assert main(["presets", "dqn"]) == 2
    assert "preset is 'dqn'; expected one of fast, drqn, r2d2" in capsys.readouterr().err
    assert main(["train", "--preset", "dqn"]) == 2
    assert "preset is 'dqn'; expected one of" in capsys.readouterr().err


def test_a_preset_cannot_change_when_a_run_is_resumed(tmp_path):
    Trainer(clock(total_steps=40, run_dir=str(tmp_path / "run"))).train()
    with pytest.raises(ValueError, match="preset is given, but cannot change when a run is resumed"):
        Trainer.resume(tmp_path / "run", {"preset": "r2d2"})


@pytest.mark.parametrize("stored", [True, False])
def test_replayed_sequences_begin_from_the_stored_state_or_from_zero(stored):
    seen = []

    def spy(online, target, batch, spec):
        seen.append(bool(batch.h0.any() or batch.c0.any()))
        return ops.td_unroll(online, target, batch, spec)

    Trainer(clock(stored_state=stored, total_steps=100), td_unroll=spy).train()
    assert len(seen) > 3
    assert any(seen) is stored


# ---- ranges over members --------------------------------------------------------------------------------------------


def test_a_range_is_spaced_over_the_members(tmp_path):
    config = Config(members=4, lr="log:1e-4:1e-1", gamma="lin:0.9:0.99", clip_norm="lin:10:1", epsilon_end=0.1)
    assert config.lr == (1e-4, 1e-3, 1e-2, 1e-1)
    assert config.gamma == pytest.approx((0.9, 0.93, 0.96, 0.99))
    assert config.clip_norm == (10.0, 7.0, 4.0, 1.0)
    config.to_yaml(tmp_path / "c.yaml")
    assert Config.from_yaml(tmp_path / "c.yaml") == config  # the values, not the range
    assert "lr: [0.0001, 0.001, 0.01, 0.1]" in (tmp_path / "c.yaml").read_text()
    (tmp_path / "d.yaml").write_text("members: 4\nlr: log:1e-4:1e-1\n")
    assert Config.from_yaml(tmp_path / "d.yaml").lr == config.lr
    assert Config.from_dict(flags("--members", "4", "--lr", "log:1e-4:1e-1")).lr == config.lr
    assert Config.from_dict(flags("--members", "2", "--lr", "1e-4,1e-1")).lr == (1e-4, 1e-1)


def test_a_drawn_value_depends_on_the_members_own_seed_and_the_setting_alone():
    def draw(members, seed, **kinds):
        return Config(members=members, seed=seed, **kinds)

    four, two = draw(4, 3, lr="loguniform:1e-4:1e-2"), draw(2, 3, lr="loguniform:1e-4:1e-2")
    assert four.lr[:2] == two.lr
    assert draw(1, 5, lr="loguniform:1e-4:1e-2").lr == (four.lr[2],)
    assert len(set(four.lr)) == 4
    many = draw(200, 0, lr="loguniform:1e-4:1e-2", gamma="uniform:0.9:1", epsilon_end="uniform:0:1")
    assert min(many.lr) >= 1e-4
    assert max(many.lr) <= 1e-2
    assert np.mean(np.array(many.lr) < 1e-3) == pytest.approx(0.5, abs=0.1)  # seen: 0.545
    assert np.mean(many.gamma) == pytest.approx(0.95, abs=0.01)  # seen: 0.9517
    assert abs(np.corrcoef(many.gamma, many.epsilon_end)[0, 1]) < 0.2  # seen: -0.039


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("log:0:1", r"lr is 'log:0:1'; expected a finite number, a list of one per member, log:A:B"),
        ("log:1e-4", "expected a finite number, a list"),
        ("cubic:1:2", "expected a finite number, a list"),
        ("lin:1:inf", "expected a finite number, a list"),
        ("lin:-1:1", r"lr is \(-1.0, 1.0\); expected above 0"),
    ],
)
def test_a_wrong_range_is_named(lr, message):
    with pytest.raises(ValueError, match=message):
        Config(members=2, lr=lr)


def test_one_member_cannot_be_spaced():
    with pytest.raises(ValueError, match=r"lr is log:0.0001:0.01; expected 2 members or more for it"):
        Config(lr="log:1e-4:1e-2")


def test_each_member_learns_with_its_own_value():
    """Members 0 and 1 with one seed's data would be equal; their step sizes and clipping alone part them."""
    run = Trainer(clock(members=2, lr="log:1e-4:1e-2", clip_norm="lin:0.5:5", gamma="lin:0.5:0.9"))
    assert run.population.lr.tolist() == pytest.approx([1e-4, 1e-2])
    assert run.population.clip_norm.tolist() == [0.5, 5.0]
    assert run.learner.spec.gamma.tolist() == pytest.approx([0.5, 0.9])
