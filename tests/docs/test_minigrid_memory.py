"""What benchmarks/minigrid_memory.py draws."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([{"step": 100_000, "success": [0.5, 0.25]}, {"step": 200_000, "success": [1.0, 0.75]}], [0.375, 0.875]),
        ([], []),  # a run that ended before its first evaluation
    ],
)
def test_the_picture_has_the_mean_of_the_seeds(
    curve: list[dict[str, Any]], expected: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    drawn: dict[str, list[float]] = {}
    save = Figure.savefig

    def remember(figure: Figure, *args: Any, **options: Any) -> None:
        drawn.update({str(line.get_label()): list(line.get_ydata()) for line in figure.axes[0].lines})
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    found = {"curve": curve, "final": {"carried": [1.0, 0.75]}}
    importlib.import_module("minigrid_memory").draw(found, tmp_path / "curve.png")
    assert drawn["mean of the seeds"] == expected
    assert (tmp_path / "curve.png").stat().st_size > 0
