"""Settings: defaults < YAML < flags, everything checked once, unknown names refused with a suggestion."""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from command_line import flags
from paths import ROOT
from worlds import tiny

import townlet
from townlet.commands.flags import add_arguments
from townlet.envs.town import TownArgs
from townlet.settings.config import PER_MEMBER, Config
from townlet.settings.values import Range
from townlet.training.trainer import Trainer


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
        (
            {"curriculum": ["later size=5"]},
            r"curriculum holds 'later size=5', which does not begin with a step; expected",
        ),
        ({"curriculum": ["5 size"]}, r"curriculum holds '5 size', in which 'size' is not key=value; expected"),
        ({"curriculum": ["9 size=5", "5"]}, r"expected stages in the order of their steps"),
        ({"members": 0}, r"members is 0; expected at least 1"),
        ({"members": 1.5}, r"members is 1.5; expected an integer"),
        ({"members": True}, r"members is True; expected an integer"),
        ({"seed": -1}, r"seed is -1; expected at least 0"),
        ({"gamma": 1.1}, r"gamma is 1.1; expected between 0 and 1"),
        ({"gamma": [0.9, 0.9]}, r"gamma is \(0.9, 0.9\); expected one value, or 1"),
        ({"gamma": "high"}, r"gamma is 'high'; expected a finite number, a list of one per member"),
        ({"lr": float("nan")}, r"lr is nan; expected a finite number"),
        ({"lr": 0}, r"lr is 0.0; expected above 0"),
        ({"burn_in": 40}, r"burn_in is 40; expected below seq_len=40"),
        ({"stride": 36}, r"stride is 36; expected 1 to seq_len - burn_in = 35, or none"),
        ({"capacity": 100}, r"capacity is 100; expected at least num_envs \* \(seq_len \+ 1\) = \d+"),
        ({"learning_starts": 10}, r"learning_starts is 10; expected at least num_envs"),
        ({"loss": "l1"}, r"loss is 'l1'; expected huber or mse"),
        ({"compute_dtype": "float16"}, r"compute_dtype is 'float16'; expected float32 or bfloat16"),
        ({"lr_decay": "cosine"}, r"lr_decay is 'cosine'; expected linear or exponential"),
        ({"lr_decay": "exponential", "lr_end": 0.0}, r"lr_end is 0.0; expected above 0 with lr_decay=exponential"),
        ({"network": "cnn"}, r"network is 'cnn'; expected auto, mlp, conv or spatial"),
        ({"network": "spatial", "env": "CartPole-v1"}, r"expected auto, mlp or conv for worlds other than"),
        ({"network": "spatial", "last_action": True}, r"last_action is True; expected false with network=spatial"),
        ({"network": "spatial", "last_reward": True}, r"last_reward is True; expected false with network=spatial"),
        ({"cell": "gru"}, r"cell is 'gru'; expected lstm, since other cells \(GRU among them\) are not supported"),
        ({"layers": 2}, r"layers is 2; expected 1, since stacked recurrent layers are not supported"),
        ({"encoder": [0]}, r"encoder is \(0,\); expected sizes of at least 1"),
        ({"head_size": 0}, r"head_size is 0; expected at least 1, or none"),
        ({"chrono_span": 1}, r"chrono_span is 1; expected at least 2, or none"),
        ({"tau": 0.0}, r"tau is 0.0; expected above 0"),
        ({"dueling": 1}, r"dueling is 1; expected true or false"),
        ({"env": ""}, r"env is ''; expected a non-empty string"),
        ({"env_args": ["a"]}, r"env_args is \['a'\]; expected key=value pairs"),
        ({"huber_delta": None}, r"huber_delta is None; expected a finite number"),
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


HAMLET = ROOT / "benchmarks" / "town_memory_hamlet.yaml"


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
    assert "--env-args is 'level'; expected key=value" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        flags("--env-args", "level=[")
    assert "in 'level=[', the value is '[', which is not YAML" in capsys.readouterr().err


def test_help_shows_every_setting_with_meaning_and_default():
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=10_000))
    add_arguments(parser)
    text = parser.format_help()
    for f in fields(Config):
        assert "--" + f.name.replace("_", "-") in text
        assert f.metadata["meaning"] in text
    assert f"(default: {Config().batch_size})" in text


def test_the_docstring_shows_every_setting_with_meaning_range_and_default():
    text = " ".join(inspect.getdoc(Config).split())
    assert text.startswith("The settings of one run.")
    assert (
        text.index(" Args: ") < text.index(" env (str): ") < text.index(" wandb (str | None): ") < text.index("Raises:")
    )
    for f in fields(Config):
        assert f" {f.name} ({f.type}): {f.metadata['meaning']}. " in text
        assert f.metadata["range"].choices or f.metadata["range"].words.capitalize() in text
    assert "batch_size (int): B, sequences per member in one update. At least 1; default 16." in text
    assert "they win over the world's defaults. Default {}. eval_env_args (dict[str, Any]): " in text
    assert Config().__doc__ == Config.__doc__


def test_the_members_own_settings_are_those_whose_fields_say_so():
    assert PER_MEMBER == ("gamma", "lr", "clip_norm", "epsilon_end")
    for f in fields(Config):
        assert f.metadata["per_member"] == (f.name in PER_MEMBER) == ("tuple[float" in f.type)


@pytest.mark.parametrize(
    ("allowed", "words", "inside", "outside"),
    [
        (Range(), "", (-1e9, 0, 1e9), ()),
        (Range(least=1), "at least 1", (1, 2), (0, 0.999)),
        (Range(most=2), "at most 2", (2, -5), (3,)),
        (Range(above=0), "above 0", (1e-300,), (0, -1)),
        (Range(below=1), "below 1", (0.999,), (1, 2)),
        (Range(least=0, most=1), "between 0 and 1", (0, 0.5, 1), (-1e-9, 1 + 1e-9)),
        (Range(above=0, most=0.5), "above 0 and at most 0.5", (0.1, 0.5), (0, 0.51)),
        (Range(least=1, most=100_000), "at least 1 and at most 100,000", (1, 100_000), (0, 100_001)),
        (Range(choices=("a", "b")), "a or b", ("a", "b"), ("c", "")),
        (Range(choices=("a", "b", "c")), "a, b or c", ("c",), ("d",)),
    ],
)
def test_a_range_holds_what_its_words_say(allowed, words, inside, outside):
    assert allowed.words == words
    assert all(allowed.holds(v) for v in (*inside, tuple(inside), None))
    assert not any(allowed.holds(v) or allowed.holds((*inside, v)) for v in outside)


def test_every_range_is_asked():
    """A value just outside of each field's range is refused, and the message has the range's words."""
    asked = 0
    for f in fields(Config):
        allowed = f.metadata["range"]
        if not allowed.words or f.name == "encoder":
            continue
        step = 1 if f.type.startswith("int") else 1e-6
        ends = [(allowed.least, -step), (allowed.above, 0), (allowed.most, step), (allowed.below, 0)]
        wrong = ["no such"] if allowed.choices else [end + off for end, off in ends if end is not None]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"^{f.name} is .*; expected {re.escape(allowed.words)}"):
                Config(**{f.name: value})
            asked += 1
    assert asked > 50


def test_settings_need_neither_torch_nor_gymnasium():
    """What `townlet train --help` waits for. The package itself may import what it likes, so it is left out here."""
    code = """
import importlib.machinery, sys, types
package = types.ModuleType("townlet")
package.__path__ = [PLACE]
package.__spec__ = importlib.machinery.ModuleSpec("townlet", None, is_package=True)
sys.modules["townlet"] = package
import townlet.settings.config, townlet.commands.flags
print(sorted({"torch", "gymnasium", "matplotlib"} & set(sys.modules)))
import townlet.envs
print(townlet.envs.TownArgs().size, "gymnasium" in sys.modules)
"""
    place = repr(str(Path(townlet.__file__).parent))
    found = subprocess.run([sys.executable, "-c", code.replace("PLACE", place)], capture_output=True, text=True)
    assert found.stdout.splitlines() == ["[]", "8 True"], found.stderr  # the control: the Town's arguments do


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
    with pytest.raises(ValueError, match=f"c.yaml:? {message}"):
        Config.from_yaml(path)


def test_an_empty_file_means_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert Config.from_yaml(tmp_path / "c.yaml") == Config()


@pytest.mark.parametrize(("seq_len", "burn_in"), [(40, 5), (40, 30), (9, 8), (2, 0), (1, 0)])
def test_the_default_stride_trains_on_every_transition(seq_len: int, burn_in: int) -> None:
    """Every step but a stream's first burn_in lies behind the burn-in of some window."""

    def trained(stride: int) -> set[int]:
        starts = range(0, 400, stride)
        return {start + t for start in starts for t in range(burn_in, seq_len)} & set(range(burn_in, 400))

    config = Config(seq_len=seq_len, burn_in=burn_in)
    assert trained(config.window_stride) == set(range(burn_in, 400))
    if burn_in > seq_len // 2:  # control: half a window, which was the default, leaves steps out
        assert trained(max(1, seq_len // 2)) != set(range(burn_in, 400))
    assert Config(seq_len=seq_len, burn_in=burn_in, stride=1).window_stride == 1


def test_the_trainer_stores_windows_at_that_stride():
    config = tiny(seq_len=10, burn_in=7, learning_starts=60)
    assert config.stride is None
    assert Trainer(config).replay.stride == 3
    assert Trainer(replace(config, burn_in=2)).replay.stride == 5  # control: half a window where that is less
