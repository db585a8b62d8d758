"""Whatever a settings file, a flag or a stage holds: settings, or a ValueError that names the fault."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from townlet.commands.flags import add_arguments, from_arguments
from townlet.settings import plain_yaml
from townlet.settings.config import Config
from townlet.settings.values import parse_stage, scalar

NAMES = [f.name for f in fields(Config)]
often = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

odd_numbers = st.one_of(
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**400, 0, -1]),
    st.floats(),
    st.booleans(),
)
leaves = st.one_of(st.none(), odd_numbers, st.text(max_size=20), st.dates(), st.binary(max_size=8))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()),
                                                                          inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


def settings_or_a_message(path: Path, content: bytes | str) -> Config | str:
    """What `Config.from_yaml` makes of the content; any other exception than a clear ValueError fails the test."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", errors="surrogatepass"))
    try:
        return Config.from_yaml(path)
    except ValueError as error:
        text = str(error)
        assert str(path) in text or any(re.search(rf"\b{name}\b", text) for name in [*NAMES, "preset"]), text
        assert len(text) < 3000
        return text


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "c.yaml"


@often
@given(st.dictionaries(st.sampled_from([*NAMES, "preset"]), values, max_size=3))
@example({"members": 10**9, "lr": "lin:1:2"})
@example({"env": "X-v0", "num_envs": [1], "seq_len": 10**12})
@example({"env": "X-v0", "num_envs": "a", "seq_len": 10**12})
@example({"curriculum": {"0 size=5": 1}})
@example({"env_args": {"day": datetime.date(2024, 1, 1)}})
def test_any_values_of_real_settings(path: Path, document: dict[str, Any]) -> None:
    made = settings_or_a_message(path, yaml.safe_dump(document, allow_unicode=True))
    if isinstance(made, Config):  # then it holds, and comes back from its own file
        made.to_yaml(path)
        again = Config.from_yaml(path)
        assert repr(again) == repr(made)  # NaN in env_args equals itself in writing alone


@often
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), values.map(lambda v: yaml.safe_dump(v))))
@example(b"\xff\xfe\x00")
@example("seed: 1\n\tmembers: 2\n")
@example("seed: 1\x00")
@example("--- 1\n--- 2\n")
@example("? [a, b]\n: 1\n")
@example("=: 1\n")
@example("<<: 1\n")
@example("!!python/object/apply:os.system [true]")
@example("seed: !!int x")
@example("seed: 2024-13-45\n")
@example("seed: 0x" + "f" * 5000)
@example("seed: " + "9" * 5000)
@example("seed: 1:99:99:99\n")
@example("lr: .nan")
@example("lr: [.inf, -.inf]")
@example("? 0x" + "f" * 5000 + "\n: 1\n")
def test_any_bytes(path: Path, content: bytes | str) -> None:
    settings_or_a_message(path, content)


mutations = st.lists(
    st.tuples(st.integers(0, 6000), st.sampled_from(list("\t :[]{}&*!|>'\"%@`#-?,0a\n\x00é"))), max_size=6
)


@often
@given(mutations)
def test_a_settings_file_with_characters_changed(path: Path, changes: list[tuple[int, str]]) -> None:
    Config().to_yaml(path)
    text = path.read_text()
    for position, character in changes:
        at = position % len(text)
        text = text[:at] + character + text[at + 1 :]
    settings_or_a_message(path, text)


laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
merges = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (laughs, "aliases are not supported, found .a"),
        (merges, "aliases are not supported"),
        ("&a [*a]", "aliases are not supported"),
        ("seed: 1\nlr: 1.0\nseed: 2\n", "'seed' is given twice, in line 3"),
        ("env_args: {size: 4, size: 5}", "'size' is given twice"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("seed:\n\t- 1", "is not YAML"),
        ("#" * (plain_yaml.LARGEST + 1), "larger than 1,048,576 bytes"),
        ("seed: 2024-02-30", "it holds an invalid value"),
        ("a: 1", "'a' is not a setting"),
        ("seed: " + "9" * 30, r"seed is 9+; expected an integer"),
        ("seed: " + "x" * 5000, "seed is 'x+[.]{3}x+'; expected an integer"),
        ("seed: [" + "[1, 2, 3, 4, 5, 6, 7, 8, 9], " * 900 + "]", "seed is .*; expected an integer"),
        ("members: 1000000000\nlr: 'uniform:1:2'", "members is 1000000000; expected at least 1 and at most 100,000"),
        ("env_args: {when: 2024-01-01}", r"env_args is .*; expected key=value pairs of numbers, strings, lists"),
        ("env_args: {1: 2}", "env_args is .*; expected key=value pairs"),
        ("curriculum: {'0 size=5': 1}", "curriculum is .*; expected a list of strings"),
        ("encoder: []\nnetwork: [1]", "network is .*; expected a non-empty string"),
    ],
    ids=lambda v: v[:20].split("\n")[0] if isinstance(v, str) else None,
)  # fmt: skip
def test_what_is_wrong_is_said(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Config.from_yaml(path)
    assert len(str(caught.value)) < 2000


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match=r"/dev/zero is not YAML .*larger than 1,048,576 bytes"):
        Config.from_yaml("/dev/zero")
    with pytest.raises(ValueError, match="cannot be read"):
        Config.from_yaml("/")


def test_off_means_off_and_numpy_means_its_numbers(path: Path) -> None:
    path.write_text("curriculum: off\n")
    assert Config.from_yaml(path).curriculum == ("off",)
    config = Config(env_args={"depletion": np.array([1.0, 2.0]), "max_steps": np.int64(9)})
    assert config.env_args == {"depletion": [1.0, 2.0], "max_steps": 9}
    with pytest.raises(ValueError, match="env_args"):
        Config(env_args={"x": object()})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="env_args"):
        Config(env_args={"x": endless})


texts = st.one_of(
    st.text(max_size=30), st.sampled_from(["[", "{a: b", "&a", "*a", "'", "nan", "inf", "1e999", "-", ""])
)


@often
@given(texts)
@example("9" * 5000)
@example("[" * 5000)
@example("2024-13-45")
def test_any_text_as_a_value(text: str) -> None:
    with contextlib.suppress(ValueError):
        scalar(text)


@often
@given(st.one_of(texts, st.lists(texts, min_size=1, max_size=4).map(" ".join), texts.map(lambda t: f"5 a={t}")))
@example("")
@example(" ")
@example("nan")
@example("inf size=5")
@example("5 =3")
@example("5 a=2024-01-01")
def test_any_text_as_a_stage(text: str) -> None:
    message = "curriculum holds "
    try:
        first, args = parse_stage(text)
        assert 0 <= first < 2**63
        assert all(isinstance(key, str) and key for key in args)
    except ValueError as error:
        message = str(error)
    assert message.startswith("curriculum holds ")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (" ", "' ', which does not begin with a step"),
        ("nan size=5", "does not begin with a step"),
        ("inf", "does not begin with a step"),
        ("-1", "does not begin with a step"),
        ("5 size=4 size=5", "gives size twice"),
        ("5 =4", "in which '=4' is not key=value"),
        ("5 a=[", r"'5 a=\[', in which '\[' is not a plain value"),
    ],
)
def test_what_is_wrong_with_a_stage_is_said(stage: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"curriculum holds .*{message}.*; expected 'STEP key=value ...'"):
        Config(curriculum=[stage])


parser = argparse.ArgumentParser(prog="t")
add_arguments(parser)
FLAGS = sorted(
    option for action in parser._actions for option in action.option_strings if option not in ("-h", "--help")
)


@often
@given(st.lists(st.one_of(st.sampled_from(FLAGS), texts, texts.map(lambda t: f"k={t}")), max_size=6))
@example(["--lr", "["])
@example(["--env-args", "a=["])
@example(["--lr", "log:1:2:3"])
@example(["--encoder", "1,[,2"])
@example(["--members", "9" * 5000])
@example(["--curriculum", "inf"])
def test_any_flags(argv: list[str]) -> None:
    errors, code, message = io.StringIO(), 0, ""
    try:
        with contextlib.redirect_stderr(errors):
            flags = from_arguments(parser.parse_args(argv))
        Config.from_dict(flags, source="flags")
    except SystemExit as end:
        code = end.code
    except ValueError as error:
        message = str(error)
    assert code == 0 or (code == 2 and "error: " in errors.getvalue())
    assert not message or any(name in message for name in [*NAMES, "preset"])
