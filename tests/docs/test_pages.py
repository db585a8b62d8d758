"""Pages name files that are there, the layout's table is the contract's, and the program of the pieces runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
STRUCTURE = ROOT / "docs" / "developing" / "structure.md"
OPERATORS = ROOT / "docs" / "developing" / "operators.md"
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "tests", "townlet")


def missing(text: str) -> list[str]:
    """The files and folders of the repository that a text names in backticks and that are not there."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`", text)
    return [path for path in named if "NAME" not in path and not list(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_a_file_that_is_not_there_is_seen() -> None:
    text = (
        "`docs/index.md` `townlet/ops/` `tests/ops/test_*.py` `townlet/moved.py` `csrc/none/` `tests/ops/test_none*.py`"
    )
    assert missing(text) == ["townlet/moved.py", "csrc/none/", "tests/ops/test_none*.py"]  # the control


def contract() -> list[set[str]]:
    """The layers of the contract between imports, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    return [{name.strip() for name in layer.split("|")} for layer in layers]


def wings(text: str) -> list[set[str]]:
    """The first column of the table of wings, a set for each row."""
    rows = text.partition("| wing |")[2].partition("\n\n")[0].split("\n")[2:]
    return [{name.rstrip("/") for name in re.findall(r"`([^`]+)`", row.split("|")[1])} for row in rows]


def agrees(text: str) -> bool:
    """Whether the table has the contract's layers in their order; the command line's two share a row."""
    top, *layers = contract()
    return wings(text) == [top | layers[0], *layers[1:]]


def test_the_table_of_wings_is_the_contract() -> None:
    text = STRUCTURE.read_text(encoding="utf-8")
    assert agrees(text)
    row = next(line for line in text.split("\n") if line.startswith("| `runs/`"))
    assert not agrees(text.replace(row + "\n", ""))  # the controls: a wing is left out, or is called otherwise
    assert not agrees(text.replace("| `runs/` |", "| `records/` |"))


def operator_files(text: str) -> list[str]:
    """Every file that the table of operators names, with its folder."""
    files: list[str] = []
    rows = text.partition("| operator |")[2].partition("\n\n")[0].split("\n")[2:]
    for row in rows:
        cells = [re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[2:7]]
        for folder, names in zip(("csrc/ops/", "csrc/", "townlet/ops/", "", "tests/ops/"), cells, strict=True):
            files += [name if name.startswith("tests/") else folder + name for name in names if folder]
    return files


def test_the_table_of_operators_names_files_that_are_there() -> None:
    text = OPERATORS.read_text(encoding="utf-8")
    files = operator_files(text)
    assert len(files) > 25
    assert [name for name in files if not list(ROOT.glob(name))] == []
    moved = operator_files(text.replace("`cpu/adam.h`", "`adam.h`"))
    assert [name for name in moved if not list(ROOT.glob(name))] == ["csrc/adam.h"]  # the control


def test_the_program_of_the_pieces_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "guides" / "pieces.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(program, "pieces.md", "exec"), {})
    assert re.search(r"'loss': \[\d\.\d+, \d\.\d+\]", capsys.readouterr().out)


def test_every_import_of_the_pieces_is_there() -> None:
    page = (ROOT / "docs" / "guides" / "pieces.md").read_text(encoding="utf-8")
    lines = re.findall(r"\| `(from townlet[^`]* import [^`]*)`", page)
    assert len(lines) >= 12
    for line in lines:
        exec(line, {})
    with pytest.raises(ImportError):
        exec(lines[0].replace("Trainer", "Trainers"), {})  # the control
