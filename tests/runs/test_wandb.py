"""Weights & Biases, against a stand-in of the package: the same numbers, the same run when resumed, none lost to it."""

from __future__ import annotations

import json
import sys
import types

import pytest
from worlds import clock

from townlet.runs.metrics import read_metrics
from townlet.runs.wandb import WandbLog
from townlet.training.trainer import Trainer


class Service(types.ModuleType):
    """What ``import wandb`` finds: keeps what it is given, fails where it is told to."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.fail: str | None = None
        self.begun: list[dict] = []
        self.sent: list[tuple[int, dict]] = []
        self.finished = 0

    def _maybe(self, where: str) -> None:
        if self.fail == where:
            raise ConnectionError(f"no {where} today")

    def init(self, **arguments):
        self._maybe("init")
        self.begun.append(arguments)
        return self

    def log(self, values, *, step):
        self._maybe("log")
        self.sent.append((step, values))

    def finish(self):
        self._maybe("finish")
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    service = Service()
    service.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", service)
    return service


def run_in(folder, **changes):
    return clock(run_dir=str(folder), checkpoint_every=80, eval_every=80, wandb="maze", **changes)


def test_it_gets_every_number_of_metrics_csv(wandb, tmp_path):
    run = Trainer(run_in(tmp_path / "run"))
    run.train()
    assert [step for step, _ in wandb.sent] == [40, 80, 120, 160]
    for row in read_metrics(run.folder / "metrics.csv"):
        values = dict(wandb.sent)[int(row["step"])]
        for name, value in row.items():
            if name not in ("step", "member") and value == value:
                (sent,) = [v for k, v in values.items() if k.endswith(f"/{name}/member_{int(row['member'])}")]
                assert sent == pytest.approx(value, rel=1e-6), name
    assert any(k.endswith("/q/mean") for k in wandb.sent[-1][1])
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["dir"]) == ("maze", "run", str(run.folder))
    assert begun["config"]["hidden_size"] == 8
    assert wandb.finished == 1


def test_a_resumed_run_goes_on_with_the_same_run(wandb, tmp_path):
    Trainer(run_in(tmp_path / "run", total_steps=80)).train()
    Trainer.resume(tmp_path / "run", {"total_steps": 160}).train()
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert [step for step, _ in wandb.sent] == [40, 80, 120, 160]
    Trainer.resume(tmp_path / "run", {"total_steps": 200, "wandb": "elsewhere"}).train()
    assert wandb.begun[2]["id"] != first["id"]
    assert json.loads((tmp_path / "run" / "wandb.json").read_text()) == {
        "project": "elsewhere",
        "id": wandb.begun[2]["id"],
    }
    Trainer(run_in(tmp_path / "other", total_steps=40)).train()
    assert wandb.begun[3]["id"] not in {first["id"], wandb.begun[2]["id"]}


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_no_failure_of_it_ends_a_run(wandb, tmp_path, where):
    wandb.fail = where
    said: list[str] = []
    run = Trainer(run_in(tmp_path / "run"), say=said.append)
    run.train()
    assert run.env_steps == 160
    assert len(read_metrics(run.folder / "metrics.csv")) == 8
    assert [line for line in said if "wandb" in line] == [f"wandb: no {where} today; the run goes on without it"]


def test_a_missing_package_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is set, but its package is not installed; expected it"):
        Trainer(run_in(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_without_the_setting_nothing_is_sent(wandb, tmp_path):
    run = Trainer(clock(run_dir=str(tmp_path / "run"), total_steps=40))
    run.train()
    assert not wandb.begun
    assert not (run.folder / "wandb.json").exists()


def test_a_damaged_id_gives_a_new_run(wandb, tmp_path):
    (tmp_path / "wandb.json").write_text('{"project": "maze"')
    WandbLog(tmp_path, "maze", {}, print).close()
    assert len(wandb.begun[0]["id"]) == 12
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == wandb.begun[0]["id"]
