"""The files of `townlet.ops` import one another in one direction, and nothing of Townlet that lies above them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import townlet.ops

FOLDER = Path(townlet.ops.__file__).parent
OPERATORS = ("td_unroll", "lstm", "acting", "adam", "spatial", "replay")
FLOORS = (("types",), ("checks",), ("reference", "backend"), ("packing",), OPERATORS, ("__init__",))
GROUND = {"_C", "_native", "device"}


def imported(source: str) -> tuple[set[str], set[str]]:
    """Which files of the package, and which other modules of Townlet, a source text imports."""
    own: set[str] = set()
    outside: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [a.name for a in node.names]
            (own if node.level == 1 else outside).update(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("townlet"):
            outside.add(str(node.module))
        elif isinstance(node, ast.Import):
            outside.update(a.name for a in node.names if a.name.startswith("townlet"))
    return own, outside


def test_every_file_has_a_floor() -> None:
    assert {name for floor in FLOORS for name in floor} == {p.stem for p in FOLDER.glob("*.py")}


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_run_downwards(floor: int) -> None:
    below = {name for names in FLOORS[:floor] for name in names}
    for name in FLOORS[floor]:
        own, outside = imported((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        assert own <= below, name
        assert outside <= GROUND, name


def test_an_import_upwards_is_seen() -> None:
    """Control: all the ways of writing one down."""
    assert imported("from .adam import adam_step\nfrom . import lstm") == ({"adam", "lstm"}, set())
    source = "from .. import learner\nfrom ..replay import x\nimport townlet.nn\nfrom townlet.ops import act"
    assert imported(source) == (set(), {"learner", "replay", "townlet.nn", "townlet.ops"})
