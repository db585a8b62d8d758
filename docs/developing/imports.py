"""Draws which part of Townlet imports which: ``python docs/developing/imports.py`` writes imports.svg beside this file.

Every import counts, also one inside a function. A row of the picture is a layer of the contract in pyproject.toml
(``[tool.importlinter]``), and a box is a module or package directly under ``townlet/``. Imports point downwards, since
the contract allows no others.
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
WIDTH, HEIGHT = 1.7, 0.5
"""Size of a box; rows are one unit apart."""


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


def draw(path: Path = PICTURE) -> None:
    """Write the picture."""
    rows, arrows = layers(), edges()
    place = {
        name: ((i - (len(row) - 1) / 2) * (WIDTH + 0.3), len(rows) - r)
        for r, row in enumerate(rows)
        for i, name in enumerate(row)
    }
    pyplot.rcParams["svg.hashsalt"] = "townlet"  # the same picture for the same imports
    figure, axes = pyplot.subplots(figsize=(13, 0.78 * len(rows)))
    for (a, b), n in sorted(arrows.items()):
        (xa, ya), (xb, yb) = place[a], place[b]
        bend = 0.0 if ya - yb <= 1 else 0.12 if xa + xb >= 0 else -0.12
        style = {"arrowstyle": "-|>", "lw": 0.5 + 0.12 * min(n, 15), "color": "#64748b", "alpha": 0.55}
        axes.annotate(
            "",
            xy=(xb, yb + HEIGHT / 2),
            xytext=(xa, ya - HEIGHT / 2),
            arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"},
        )
    for name, (x, y) in place.items():
        corner, style = (x - WIDTH / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.1"
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=style, fc="#eff6ff", ec="#1d4ed8")
        axes.add_patch(box)
        axes.text(x, y, name, ha="center", va="center", fontsize=9, color="#0f172a")
    span = max(abs(x) for x, _ in place.values()) + WIDTH
    axes.set(xlim=(-span, span), ylim=(0.4, len(rows) + 0.6))
    axes.axis("off")
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Description": as_text(arrows), "Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
    print(f"wrote {PICTURE.relative_to(ROOT)}")
