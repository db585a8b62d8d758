"""Settings: defaults < YAML < flags, everything checked once, unknown names refused with a suggestion."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from worlds import tiny

from townlet.config import Config
from townlet.envs.town import TownArgs
from townlet.flags import add_arguments, from_arguments


def flags(*argv: str) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(argv))


def test_defaults_are_the_town_and_frozen():
    config = Config()
    assert config.is_town
    assert config.training_args == {"knots": 8, "reward": "wellbeing", "random_start": True}
    assert config.evaluation_args == {"knots": 8, "reward": "survival", "random_start": False}
    with pytest.raises(FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_evaluation_differs_from_training_where_it_must():
    config = Config(env_args={"depletion": 2.0, "reward": "wellbeing"}, eval_env_args={"max_steps": 300})
    assert config.training_args == {**Config().training_args, "depletion": 2.0, "reward": "wellbeing"}
    expected = {"depletion": 2.0, "reward": "survival", "random_start": False, "max_steps": 300}
    assert expected.items() <= config.evaluation_args.items()
    assert Config(env="CartPole-v1").training_args == {} == Config(env="CartPole-v1").evaluation_args


def test_stages_of_the_curriculum():
    world = Config(curriculum="off").training_args
    assert Config(curriculum="off").stages == [(0, world)]
    config = Config(curriculum=["40 size=5", "1e3 depletion=1.0 size=6", "2_000"])
    assert config.stages == [
        (0, world),
        (40, {**world, "size": 5}),
        (1000, {**world, "size": 6, "depletion": 1.0}),
        (2000, world),
    ]
    assert flags("--curriculum", "0 size=5", "9")["curriculum"] == ["0 size=5", "9"]
    # the default stages leave alone what the user sets; evaluation is not touched by any of this
    for n, args in Config(env_args={"size": 7}).stages:
        assert n >= 0
        assert args["size"] == 7
    assert "size" not in Config().evaluation_args
    assert Config(env="CartPole-v1").stages == [(0, {})]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"curriculum": ["later size=5"]}, r"curriculum: 'later size=5' does not begin with a step"),
        ({"curriculum": ["5 size"]}, r"curriculum: '5 size' holds something that is not key=value"),
        ({"curriculum": ["9 size=5", "5"]}, r"expected stages in the order of their steps"),
        ({"members": 0}, r"members=0: expected at least 1"),
        ({"members": 1.5}, r"members=1.5: expected an integer"),
        ({"members": True}, r"members=True: expected an integer"),
        ({"seed": -1}, r"seed=-1: expected at least 0"),
        ({"gamma": 1.1}, r"gamma=1.1: expected between 0 and 1"),
        ({"gamma": [0.9, 0.9]}, r"gamma=\(0.9, 0.9\): expected one value, or 1"),
        ({"gamma": "high"}, r"gamma='high': expected a finite number, a list of one per member"),
        ({"lr": float("nan")}, r"lr=nan: expected a finite number"),
        ({"lr": 0}, r"lr=0.0: expected above 0"),
        ({"burn_in": 40}, r"burn_in=40: expected below seq_len=40"),
        ({"stride": 41}, r"stride=41: expected 1 to seq_len=40, or none"),
        ({"capacity": 100}, r"capacity=100: expected at least num_envs \* \(seq_len \+ 1\) = \d+"),
        ({"learning_starts": 10}, r"learning_starts=10: expected at least num_envs"),
        ({"loss": "l1"}, r"loss='l1': expected huber or mse"),
        ({"compute_dtype": "float16"}, r"compute_dtype='float16': expected float32 or bfloat16"),
        ({"lr_decay": "cosine"}, r"lr_decay='cosine': expected linear or exponential"),
        ({"lr_decay": "exponential", "lr_end": 0.0}, r"lr_end=0.0: expected above 0 with lr_decay=exponential"),
        ({"network": "cnn"}, r"network='cnn': expected auto, mlp, conv or spatial"),
        ({"network": "spatial", "env": "CartPole-v1"}, r"expected auto, mlp or conv for worlds other than"),
        ({"network": "spatial", "last_action": True}, r"last_action=True: expected false with network=spatial"),
        ({"network": "spatial", "last_reward": True}, r"last_reward=True: expected false with network=spatial"),
        ({"cell": "gru"}, r"cell='gru': expected lstm; other cells \(GRU among them\) are not supported"),
        ({"layers": 2}, r"layers=2: expected 1; stacked recurrent layers are not supported"),
        ({"encoder": [0]}, r"encoder=\(0,\): expected sizes of at least 1"),
        ({"head_size": 0}, r"head_size=0: expected at least 1, or none"),
        ({"chrono_span": 1}, r"chrono_span=1: expected at least 2, or none"),
        ({"tau": 0.0}, r"tau=0.0: expected above 0"),
        ({"dueling": 1}, r"dueling=1: expected true or false"),
        ({"env": ""}, r"env='': expected a non-empty string"),
        ({"env_args": ["a"]}, r"env_args=\['a'\]: expected key=value pairs"),
        ({"huber_delta": None}, r"huber_delta=None: expected a finite number"),
    ],
)
def test_a_wrong_value_names_field_value_and_expectation(values, message):
    defaults = {"seq_len": 40, "num_envs": 64, "members": 1, "stride": None}
    with pytest.raises(ValueError, match=message):
        Config(**{**defaults, **values})


def test_yaml_holds_every_setting_and_comes_back(tmp_path):
    config = tiny(gamma=(0.9, 0.95), head_size=None, env_args={"depletion": 2.0}, tau=0.01, lr=1e-5, run_dir="a b")
    config.to_yaml(tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    assert all(f"\n{f.name}: " in "\n" + text for f in fields(Config))
    assert all(f.metadata["meaning"] in text for f in fields(Config))
    assert Config.from_yaml(tmp_path / "c.yaml") == config


HAMLET = Path(__file__).parents[1] / "benchmarks" / "town_memory_hamlet.yaml"


@pytest.mark.parametrize(
    ("config", "level", "depletion"),
    [(Config(), "town", 1.0), (Config.from_yaml(HAMLET), "hamlet", 1.5)],
    ids=["town", "hamlet"],
)
def test_the_towns_training_grows_into_worlds_that_exist_and_is_measured_in_the_towns_own(config, level, depletion):
    assert config.total_steps == config.lr_decay_steps > config.stages[-1][0]
    trained = [TownArgs(**args) for _, args in config.stages]
    assert {a.level for a in trained} == {level}
    assert [a.size for a in trained] == sorted(a.size for a in trained)
    measured = TownArgs(**config.evaluation_args)  # full meters, $20, 8x8, counted in ticks survived
    assert measured == TownArgs(level=level, depletion=depletion, knots=8)
    assert measured not in trained  # the control: training has other starts, another reward, smaller maps


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 7\nbatch_size: 9\nlr: 1e-4\n")
    config = Config.from_yaml(path, flags("--seed", "8", "--lr", "3e-4", "--no-double-q"))
    assert (config.seed, config.batch_size, config.lr, config.double_q) == (8, 9, 3e-4, False)
    assert config.eta == Config().eta
    assert Config.from_yaml(path).seed == 7


def test_flags_read_every_kind():
    given = flags(
        "--gamma", "0.9,0.95", "--encoder", "64,32", "--tau", "none", "--total-steps", "1_000", "--env", "X-v0",
        "--env-args", "level=town", "depletion=2", "--env-args", "fast=true", "--head-size", "none",
        "--run-dir", "none",
    )  # fmt: skip
    assert given == {
        "gamma": [0.9, 0.95], "encoder": [64, 32], "tau": None, "total_steps": 1000, "env": "X-v0", "head_size": None,
        "env_args": {"level": "town", "depletion": 2, "fast": True}, "run_dir": None,
    }  # fmt: skip
    assert flags() == {}
    assert Config(members=2, **{k: v for k, v in given.items() if k == "gamma"}).per_member("gamma") == [0.9, 0.95]
    assert Config(members=2, gamma=0.5).per_member("gamma") == [0.5, 0.5]


def test_a_flag_that_is_no_pair_is_refused(capsys):
    with pytest.raises(SystemExit):
        flags("--env-args", "level")
    assert "'level' is not key=value" in capsys.readouterr().err


def test_help_shows_every_setting_with_meaning_and_default():
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=10_000))
    add_arguments(parser)
    text = parser.format_help()
    for f in fields(Config):
        assert "--" + f.name.replace("_", "-") in text
        assert f.metadata["meaning"] in text
    assert f"(default: {Config().batch_size})" in text


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batchsize: 3\n")
    with pytest.raises(ValueError, match=r"c.yaml: 'batchsize' is not a setting; did you mean 'batch_size'\?"):
        Config.from_yaml(path)
    with pytest.raises(ValueError, match="'qqqqq' is not a setting; settings: preset, env, "):
        Config.from_dict({"qqqqq": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not YAML"), ("- 1", "holds list"), (None, "cannot be read")],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"c.yaml: {message}"):
        Config.from_yaml(path)


def test_an_empty_file_means_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert Config.from_yaml(tmp_path / "c.yaml") == Config()
