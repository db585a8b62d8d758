"""How the code is laid out: few names at the top, imports that run one way, no circles, and a picture that is true."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import grimp
import networkx
import pytest
from paths import ROOT, TESTS

PACKAGE = ROOT / "townlet"
MOST_AT_THE_TOP = 26


def names_at_the_top() -> list[str]:
    """Modules and packages directly under townlet/, without the package's own `__init__`."""
    modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    return sorted(modules | {p.parent.name for p in PACKAGE.glob("*/__init__.py")})


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    graph = networkx.DiGraph([(a, b) for a, targets in imports.items() for b in targets])
    return [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Which module imports which, imports inside functions included."""
    graph = grimp.build_graph("townlet", include_external_packages=False, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_few_names_are_at_the_top() -> None:
    names = names_at_the_top()
    assert len(names) <= MOST_AT_THE_TOP, names
    assert {"ops", "learning", "training", "commands"} <= set(names)


def test_no_modules_import_each_other(imports: dict[str, set[str]]) -> None:
    assert circles(imports) == []
    # control: one import that points up is seen, though three modules lie between
    assert "townlet.training.trainer" in imports["townlet.commands.train"]
    spoilt = {**imports, "townlet.support.files": {"townlet.commands.train"}}
    assert any({"townlet.support.files", "townlet.commands.train"} <= set(group) for group in circles(spoilt))


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_imports_keep_the_contract(tmp_path: Path) -> None:
    kept = lint(ROOT)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "1 kept, 0 broken" in kept.stdout
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "ignore_imports" not in settings
    # control: a copy of the sources in which the ground imports the training loop. It has a name of its own, because
    # an editable install leads `townlet` to this repository from everywhere.
    copy = tmp_path / "spoilt"
    for source in PACKAGE.rglob("*.py"):
        target = copy / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_text(settings.replace('["townlet"]', '["spoilt"]'), encoding="utf-8")
    assert lint(tmp_path).returncode == 0
    with open(copy / "support" / "files.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef upwards():\n    from ..training import trainer\n\n    return trainer\n")
    broken = lint(tmp_path)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "spoilt.support.files -> spoilt.training.trainer" in broken.stdout


@pytest.fixture(scope="module")
def drawer() -> ModuleType:
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("imports", ROOT / "docs" / "developing" / "imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_todays_imports(drawer: ModuleType) -> None:
    picture = drawer.PICTURE.read_text(encoding="utf-8")
    edges = drawer.edges()

    def is_drawn(edges: dict[tuple[str, str], int]) -> bool:
        return f">{drawer.as_text(edges).replace('>', '&gt;')}<" in picture

    assert is_drawn(edges), "python docs/developing/imports.py draws it anew"
    one_more = {**edges, ("commands", "training"): edges["commands", "training"] + 1}
    one_less = dict(list(edges.items())[1:])
    assert not is_drawn(one_more)  # the controls
    assert not is_drawn(one_less)


def other_tests(source: str) -> list[str]:
    """The test modules that a source text imports, or imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    return [name for name in names if name.split(".")[-1].startswith("test_")]


def test_what_tests_share_is_among_the_helpers() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert {p.name: found for p in files if (found := other_tests(p.read_text(encoding="utf-8")))} == {}
    several = [name for name, n in Counter(p.name for p in files).items() if n > 1]
    assert several == [], "pytest imports each file of tests under its bare name"
    wrong = "import test_a\nfrom ops import test_b\ndef f():\n    from ops.test_c import d\nfrom worlds import tiny"
    assert sorted(other_tests(wrong)) == ["ops.test_c", "test_a", "test_b"]  # the control


def test_every_wing_has_its_tests() -> None:
    wings = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert {wing for wing in wings if not list((TESTS / wing).glob("test_*.py"))} == set()
