"""The site builds without a warning, links included, and has an entry for every public name and every setting."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from paths import ROOT

import townlet
import townlet.nn
import townlet.ops
import townlet.reference
from townlet.cli import COMMANDS

DOCS = ROOT / "docs"
EXPECTED = {
    *(f"townlet.{name}" for name in townlet.__all__),
    *(f"townlet.ops.{name}" for name in townlet.ops.__all__),
    *(f"townlet.nn.{name}" for name in townlet.nn.__all__),
    *(
        f"townlet.reference.{name}"
        for name in townlet.ops.__all__
        if hasattr(townlet.reference, name) and name.islower()
    ),
    *(f"townlet.Config.{field.name}" for field in fields(townlet.Config)),
}


def build(folder: Path, *options: str, source: Path = DOCS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", *options, str(source), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site: the one build that the tests below share."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, "-b", "html")
    assert done.returncode == 0, done.stderr
    return folder


def entries(site: Path) -> dict[tuple[str, str], str]:
    """(domain and role, name) -> address of every entry in the site's inventory."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {(role, name): item.uri for role, items in inventory.data.items() for name, item in items.items()}


def without_entry(names: set[str], site: Path) -> set[str]:
    return names - {name for role, name in entries(site) if role.startswith("py:")}


def test_every_public_name_and_every_setting_has_an_entry(site: Path) -> None:
    assert without_entry(EXPECTED, site) == set()
    assert without_entry(EXPECTED | {"townlet.ops.left_out"}, site) == {"townlet.ops.left_out"}  # the control


def test_every_command_and_its_options_have_an_entry(site: Path) -> None:
    options = {name for role, name in entries(site) if role == "std:cmdoption"}
    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert {f"townlet-{name}.--help" for name in names} <= options
    assert {f"townlet-train.--{field.name.replace('_', '-')}" for field in fields(townlet.Config)} <= options
    assert "townlet-train.--left-out" not in options  # the control


def test_a_setting_shows_what_the_code_says(site: Path) -> None:
    text = page(site / "reference" / "settings.html")
    for field in fields(townlet.Config):
        assert f"townlet.Config.{field.name}: {field.type}".replace(" ", "") in text, field.name
        assert field.metadata["meaning"].replace(" ", "") in text, field.name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("townlet.ops.SequenceBatch.h0", "[P, B, H]"),
        ("townlet.ops.TDOutput.priority", "[P, B]"),
        ("townlet.ops.SequenceBatch.reset", "[P, B, S+1]"),
    ],
)
def test_the_search_leads_to_the_shape_of_a_tensor(site: Path, name: str, shape: str) -> None:
    """The page's entry has the shape in it, and the search knows the entry by its last name."""
    text = (site / "reference" / "ops.html").read_text(encoding="utf-8")
    entry = text.partition(f'id="{name}"')[2].partition("</dd>")[0]
    assert shape.replace(" ", "") in plain(entry)
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert f'"{name.rpartition(".")[2]}"' in index


def page(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8").partition("<article")[2])


def plain(html: str) -> str:
    """The text of a page, without blanks, in the quotes of the source."""
    import html as entities

    text = entities.unescape(re.sub(r"<[^>]+>", "", html))
    for curly, straight in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("…", "...")):
        text = text.replace(curly, straight)
    return re.sub(r"\s", "", text)


def test_a_broken_link_or_anchor_stops_the_build(tmp_path: Path) -> None:
    """The control of the build: the same settings on another page, with links that lead somewhere and nowhere."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("---\norphan: true\n---\n# Other\n")
    links = ["[a](other.md#other)", "[a](none.md)", "[a](other.md#none)", "{py:class}`townlet.ops.None`"]
    (tmp_path / "docs" / "index.md").write_text("\n\n".join(["# Page", *links]))
    done = build(tmp_path / "site", "-b", "dummy", "-c", str(DOCS), source=tmp_path / "docs")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert [re.search(r"index\.md:(\d+)", line).group(1) for line in sorted(warnings)] == ["5", "7", "9"], done.stderr
