"""The Python programs of README and guides run as they stand, the README's first commands are what the gate expects,
and the links between Markdown files lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme
from paths import ROOT
from suites import SUITES

README = ROOT / "README.md"
PROGRAMS = [README, ROOT / "docs" / "start" / "first-agent.md", ROOT / "docs" / "guides" / "own-learner.md"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def blocks(language: str, page: Path = README) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.stem)
def test_python_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they may write runs/
    programs = blocks("python", page)
    assert programs
    for code in programs:
        exec(compile(code, page.name, "exec"), {"__name__": page.stem})


def test_the_first_two_blocks_train_and_test() -> None:
    text = README.read_text(encoding="utf-8")
    train, test = blocks("bash")[:2]
    assert text.index("```") == text.index("```bash")
    for command in (train, test):
        assert command.count("\n") == 1, "one command line each"
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt ")
    assert train.rstrip().endswith(".venv/bin/townlet train")
    assert "pytest" in test


def test_the_install_page_begins_with_the_readme_command() -> None:
    assert blocks("bash", ROOT / "docs" / "start" / "install.md")[0] == blocks("bash")[0]


def broken_links(page: Path, text: str) -> Iterator[str]:
    """The links of a page's text that lead to no file, or to no heading of it."""
    for path, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)", text):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            yield f"{path}#{anchor}" if anchor else path


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site give to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_seen() -> None:
    text = "# One, two\n[a](README.md) [b](#one-two) [c](#two) [d](none.md) [e](https://example.org/none)"
    assert list(broken_links(README, text)) == ["#two", "none.md"]  # the control


def test_the_benchmark_tables_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    monkeypatch.setattr(readme, "README", page)
    committed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for text in (committed, committed.replace("| townlet fp32 | 1.364 |", "| townlet fp32 | 1.264 |")):
        page.write_text(text, encoding="utf-8")
        readme.fill(ROOT / "benchmarks" / "results", list(SUITES))
        assert page.read_text(encoding="utf-8") == committed  # the second is the control: a figure by hand is undone
    assert text != committed


ENDINGS = {".c", ".cpp", ".cu", ".cuh", ".h", ".inl", ".md", ".py", ".pyi", ".yaml"}


def stale_paths(text: str) -> list[str]:
    """The paths below docs/ and tests/ that a text names and that are not there."""
    named = re.findall(r"\b(?:docs/[\w/-]+\.(?:md|png)|tests/[\w/-]+\.(?:py|cpp|h))\b", text)
    return [path for path in named if not (ROOT / path).exists()]


def test_pages_that_are_named_in_passing_are_there() -> None:
    folders = ("benchmarks", "csrc", "docs", "examples", "tests", "townlet")
    inside = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    files = [*ROOT.glob("*.md"), ROOT / "CMakeLists.txt", *(path for path in inside if path.suffix in ENDINGS)]
    assert {path.suffix for path in files if "csrc" in path.parts} > {".h", ".cpp", ".cu", ".cuh", ".inl"}
    stale = {str(p.relative_to(ROOT)): found for p in files if (found := stale_paths(p.read_text(encoding="utf-8")))}
    assert stale == {}
    gone = ["/".join(names) for names in (("docs", "moved.md"), ("tests", "test_moved.py"))]
    assert stale_paths(f"see README.md, {gone[0]} and tests/test_types.py ({gone[1]}::test_x)") == gone  # the control
