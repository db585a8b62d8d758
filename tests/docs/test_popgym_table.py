"""What benchmarks/popgym_table.py says about returns made up."""

import importlib
from types import ModuleType

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("popgym_table")


def row(**finals: list[float]) -> dict[str, dict[str, list[float]]]:
    return {name.replace("_", "-"): {"final": final} for name, final in finals.items()}


ALL = {"cleared": [0.1] * 3, "zeroed_target": [0.2] * 3, "memoryless": [0.1] * 3, "torchrl": [0.3] * 3}


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ({**ALL, "ours": [0.9, 0.9, 0.9], "tianshou": [0.5, 0.5, 0.5]}, "best"),
        ({**ALL, "ours": [0.9, 0.8, 0.7], "tianshou": [0.9, 0.9, 0.8]}, "level"),  # intervals overlap
        ({**ALL, "ours": [0.5, 0.5, 0.5], "tianshou": [0.9, 0.9, 0.9]}, "behind tianshou"),
        ({**ALL, "ours": [0.25, 0.25, 0.25], "tianshou": [0.9, 0.9, 0.9]}, "behind tianshou, torchrl"),
        ({**ALL, "ours": [1 - 2e-8] * 3, "tianshou": [1 + 7e-16] * 3}, "best"),  # sums of rewards, rounded
        ({**ALL, "ours": [0.98] * 3, "tianshou": [1.0] * 3}, "behind tianshou"),
        ({"ours": [0.9] * 3, "tianshou": [0.5]}, "best so far"),
        ({"ours": [0.5] * 3, "tianshou": [0.9]}, "behind tianshou so far"),
        ({"tianshou": [0.9]}, ""),
    ],
)
def test_best_level_or_behind(table: ModuleType, finals: dict[str, list[float]], expected: str) -> None:
    assert table.verdict(row(**finals)) == expected


def test_a_cell_shows_the_mean_its_interval_and_how_many_seeds(table: ModuleType) -> None:
    assert table.cell(None) == "not run"
    assert table.cell({"final": [0.25]}) == "0.25 (1)"
    assert table.cell({"final": [0.4, 0.5, 0.6]}) == "0.50 ± 0.25 (3)"  # 4.303 * 0.1 / sqrt(3)


def test_settings_are_the_files_with_those_of_the_world_over_them(table: ModuleType) -> None:
    first, pole = table.settings("RepeatFirstEasy"), table.settings("PositionOnlyCartPoleEasy")
    recall = table.settings("CountRecallEasy")
    assert pole.env == "popgym-PositionOnlyCartPoleEasy-v0"
    for changes, config in [(table.POLES, pole), (table.AT_ONCE, recall)]:
        for name, value in changes.items():
            assert getattr(config, name) == value
            assert getattr(first, name) != value
    assert first.total_steps == pole.total_steps == recall.total_steps == 500_000
    assert table.settings("CountRecallEasy", members=3, gamma=0.9).members == 3
    assert table.settings("CountRecallEasy", gamma=0.9).gamma == 0.9  # --gamma is over both
