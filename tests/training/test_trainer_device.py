"""Training in its form for a device, as far as that can be seen without one: deferred checks, a recorded update."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from worlds import clock

from townlet import cli
from townlet.learning.cuda_graph import Replayed
from townlet.learning.population import VectorizedPopulation
from townlet.settings.config import Config
from townlet.training import trainer
from townlet.training.trainer import Trainer

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def state(run: Trainer) -> list[torch.Tensor]:
    p = run.population
    return [p.online_flat, p.target_flat, p.adam_m, p.adam_v, *p.state]


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Populations of a trainer check as on a device."""
    monkeypatch.setattr(trainer, "VectorizedPopulation", partial(VectorizedPopulation, deferred=True))


SETTINGS: dict[str, Any] = {"lr_decay_steps": 100, "lr": 1e-2, "prioritised": True}


EXPLORED: dict[str, Any] = {"lr": "log:1e-4:1e-2", "gamma": "lin:0.5:0.9", "clip_norm": "lin:0.1:9"}
COPYING: dict[str, Any] = {**SETTINGS, "members": 4, "pbt_every": 24, "pbt_explore": list(EXPLORED), **EXPLORED}


@pytest.mark.parametrize("settings", [SETTINGS, COPYING], ids=["alone", "with members copied"])
def test_a_run_with_a_recorded_update_is_the_run(deferred: None, settings: dict[str, Any]) -> None:
    plain, recorded = Trainer(clock(**settings)), Trainer(clock(**settings))
    recorder = TapeRecorder()
    recorded.learner.replayed = Replayed(recorder)
    for run in (plain, recorded):
        run.train()
    assert recorder.replays > 3
    assert len(recorded.pbt.lineage) >= 3 * ("pbt_every" in settings)
    assert all(torch.equal(a, b) for a, b in zip(state(plain), state(recorded), strict=True))


def test_deferred_checks_stop_the_run_at_its_next_record(deferred: None, tmp_path: Any) -> None:
    run = Trainer(clock(run_dir=str(tmp_path / "run"), log_every=8))
    begun = run.act_step

    def spoilt() -> None:
        begun()
        if run.env_steps == 60:
            run.replay._data["reward"][:] = float("nan")

    run.act_step = spoilt  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="loss of member 0, 1 is not finite"):
        run.train()
    assert 60 <= run.env_steps <= 64
    assert all(bool(v.isfinite().all()) for v in state(run))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_run_goes_on_on_another_device(deferred: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a device is a matter of deferred checks: saved in one form, resumed in both."""
    first = Trainer(clock(run_dir=str(tmp_path / "run"), total_steps=80, **SETTINGS))
    first.train()
    finals = []
    for form in (True, None):
        monkeypatch.setattr(trainer, "VectorizedPopulation", partial(VectorizedPopulation, deferred=form))
        run = Trainer.resume(tmp_path / "run", {"total_steps": 120, "device": "cpu", "cuda_graph": False})
        assert not run.config.cuda_graph
        while run.env_steps < 120:
            run.act_step()
            run.learn()
        assert run.population.state_dict()["adam_steps"] == run.updates > first.updates
        finals.append(state(run))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*finals, strict=True))  # observed 2e-7


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps"])
def test_a_device_is_cpu_or_cuda(name: str) -> None:
    with pytest.raises(ValueError, match=f"device is {name!r}; expected cpu, cuda or cuda:N"):
        Config(device=name)


@without_gpu
def test_where_there_is_no_gpu_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda', but torch .*; expected cpu"):
        Trainer(clock(device="cuda"))
    assert cli.main(["train", "--device", "cuda:1"]) == 2
    assert "device is 'cuda:1', but torch" in capsys.readouterr().err
