"""Types as a caller sees them: every public name in a file that `mypy --strict` reads, the compiled module's stub."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from typing import Any

import public_api
import pytest
from paths import HELPERS, ROOT
from worlds import tiny

import townlet
import townlet.envs
import townlet.nn
import townlet.ops
from townlet import _C

USED = ast.parse((HELPERS / "public_api.py").read_text(encoding="utf-8"))
STUB = ast.parse((ROOT / "townlet" / "_C.pyi").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("one_thread")
def test_the_file_that_is_type_checked_runs() -> None:
    public_api.facts()
    public_api.operators()
    public_api.modules()
    public_api.learning()
    public_api.worlds()
    public_api.training(tiny(total_steps=80))


@pytest.mark.parametrize("module", [townlet, townlet.ops, townlet.nn, townlet.envs], ids=lambda m: m.__name__)
def test_it_uses_every_public_name(module: Any) -> None:
    used = {n.id for n in ast.walk(USED) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(USED) if isinstance(n, ast.Attribute)}
    assert set(module.__all__) <= used


def test_mypy_reads_it_strictly_and_others_read_our_types() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"] is True
    assert "tests/helpers/public_api.py" in settings["files"]
    assert (ROOT / "townlet" / "py.typed").exists()  # in the wheel with the rest of the package


def documented(function: Any) -> list[str] | None:
    """Names of the arguments as pybind11 writes them into the docstring; None for what has none."""
    signature = re.match(r"\w+\((.*)\) -> ", function.__doc__ or "")
    return None if signature is None else re.findall(r"(?:^|, )(?:\*, )?(\w+): ", signature.group(1))


def stubbed(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]


def test_the_stub_has_the_compiled_modules_names_and_arguments() -> None:
    functions = {n.name: n for n in STUB.body if isinstance(n, ast.FunctionDef)}
    classes = {n.name: n for n in STUB.body if isinstance(n, ast.ClassDef)}
    assert {n for n in dir(_C) if not n.startswith("__")} == functions.keys() | classes.keys()
    for name, stub in functions.items():
        assert stubbed(stub) == documented(getattr(_C, name))
    for name, body in classes.items():
        methods = {n.name: n for n in body.body if isinstance(n, ast.FunctionDef)}
        compiled = getattr(_C, name)
        own = {n for n in dir(compiled) if not n.startswith("_")} | {"__init__"}
        assert own == methods.keys()
        for method, stub in methods.items():
            attribute = inspect.getattr_static(compiled, method)
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in stub.decorator_list)
            assert isinstance(attribute, property) is is_property
            if not is_property:
                assert stubbed(stub) == documented(getattr(compiled, method))


def test_a_wrong_stub_is_noticed() -> None:
    """Control: the docstrings do hold the arguments that are compared."""
    assert documented(_C.philox_uniform) == ["keys", "stream", "counter", "n"]
    assert documented(_C.Town.observe) == ["self", "obs", "legal"]
    town = documented(_C.Town.__init__) or []
    assert (town[:2], town[-1]) == (["self", "num_envs"], "random_start")
    assert documented(_C.build_info) == []
