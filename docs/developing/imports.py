"""Draws which part of Townlet imports which: ``python docs/developing/imports.py`` writes imports.svg beside this file.

Boxes are the modules and packages directly under ``townlet/``, in the order of the contract in pyproject.toml
(``[tool.importlinter]``). To the right of a box stand the numbers of its imports, each above the box that is imported,
so no line crosses a box. The half below the boxes is where imports that run back up would stand. Every import counts,
also one inside a function.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_name("imports.svg")
WIDTH, HEIGHT = 0.94, 0.66
"""Size of a box; rows and columns are one unit apart."""
TOGETHER = (("__main__", "cli"), ("_build", "_native"))
"""Modules that share a box, beside those of one layer that are public addresses."""


def layers() -> list[list[str]]:
    """The names in each layer of the contract, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (c for c in settings["contracts"] if c["type"] == "layers")
    return [[name.strip() for name in layer.replace("|", ":").split(":")] for layer in contract["layers"]]


def edges() -> dict[tuple[str, str], int]:
    """(importer, imported) -> how many imports between two different names directly under ``townlet/``."""
    graph = grimp.build_graph("townlet", include_external_packages=False, cache_dir=None)
    count: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = [name.split(".")[1] for name in (module, imported) if "." in name]
            if len(ends) == 2 and ends[0] != ends[1]:
                count[ends[0], ends[1]] += 1
    return dict(count)


def as_text(edges: dict[tuple[str, str], int]) -> str:
    """The imports in words, as the picture holds them in its metadata."""
    return "; ".join(f"{a} -> {b}: {n}" for (a, b), n in sorted(edges.items()))


def boxes() -> dict[str, str]:
    """Name -> the text of its box, from the top down. A wing has a box of its own."""
    texts: dict[str, str] = {}
    for layer in layers():
        wings = [name for name in layer if (ROOT / "townlet" / name).is_dir()]
        texts |= {name: name if name in wings else "public\naddresses" for name in layer}
    return texts | {name: "\n".join(group) for group in TOGETHER for name in group}


def draw(path: Path = PICTURE) -> None:
    """Write the picture."""
    arrows, text_of = edges(), boxes()
    place = {text: i for i, text in enumerate(dict.fromkeys(text_of.values()))}
    numbers: Counter[tuple[int, int]] = Counter()
    for (a, b), n in arrows.items():
        if text_of[a] != text_of[b]:
            numbers[place[text_of[a]], place[text_of[b]]] += n
    pyplot.rcParams["svg.hashsalt"] = "townlet"  # the same picture for the same imports
    pyplot.rcParams["svg.fonttype"] = "none"
    figure, axes = pyplot.subplots(figsize=(0.95 * len(place), 0.6 * len(place)))
    faint = {"color": "#cbd5e1", "lw": 1.0, "zorder": 0}
    for row in place.values():
        imported = [b for a, b in numbers if a == row]
        importers = [a for a, b in numbers if b == row]
        axes.plot([row, max(imported, default=row)], [row, row], **faint)
        axes.plot([row, row], [min(importers, default=row), row], **faint)
        if importers:
            end = row - HEIGHT / 2
            style = {"arrowstyle": "-|>", "color": "#94a3b8", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=(row, end), xytext=(row, end - 0.18), arrowprops=style)
    for (row, column), n in sorted(numbers.items()):
        circle = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": "#64748b", "lw": 0.8}
        axes.text(column, row, str(n), ha="center", va="center", fontsize=9, color="#0f172a", bbox=circle)
    for text, row in place.items():
        wing = (ROOT / "townlet" / text).is_dir()
        corner = (row - WIDTH / 2, row - HEIGHT / 2)
        look = {"fc": "#dbeafe" if wing else "#f1f5f9", "ec": "#1d4ed8" if wing else "#64748b"}
        axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", **look))
        axes.text(row, row, text, ha="center", va="center", fontsize=9, color="#0f172a")
    note = (
        "A box imports what lies to the right and below.\nA number says how many imports there are.\nNone runs back up."
    )
    axes.text(0, 0.72 * len(place), note, fontsize=12, color="#475569", linespacing=1.6)
    axes.set(xlim=(-0.6, len(place) - 0.4), ylim=(len(place) - 0.5, -0.5))
    axes.axis("off")
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Description": as_text(arrows), "Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
    print(f"wrote {PICTURE.relative_to(ROOT)}")
