"""A short version of benchmarks/popgym_cartpole.py: values that travel back through the target's own memory pay."""

from __future__ import annotations

import importlib.util

import numpy as np
from paths import ROOT

from townlet.settings.config import Config

BENCHMARK = ROOT / "benchmarks" / "popgym_cartpole.py"


def test_carrying_the_targets_state_pays_on_position_only_cartpole() -> None:
    spec = importlib.util.spec_from_file_location("popgym_cartpole", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    steps = 40_000
    changes = {"members": 3, "total_steps": steps, "lr_decay_steps": steps, "eval_every": 0, "threads": 1}
    config = Config.from_yaml(benchmark.SETTINGS, changes)
    carried, zeroed = (np.array(benchmark.run(config, kept)[0]) for kept in (True, False))
    # seen: carried 0.43, 0.32, 0.50, zeroed 0.17, 0.15, 0.15; three times as many steps bring 0.9 and more
    assert carried.mean() > 0.25, f"carried {carried}, zeroed {zeroed}"
    assert carried.mean() - zeroed.mean() > 0.1, f"carried {carried}, zeroed {zeroed}"
