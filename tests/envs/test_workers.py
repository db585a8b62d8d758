"""Worker processes: the same bits as in one process, and no process left behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from paths import HELPERS
from worlds import Clock, clock

from townlet.envs.adapter import VectorAdapter
from townlet.envs.make import make_worlds
from townlet.envs.workers import WorkerAdapter
from townlet.settings.config import Config
from townlet.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Masked(Clock):
    """A Clock that says which actions are legal and how long it has lived; environment ``fails`` fails at step 3."""

    observation_space, action_space = Box(0.0, 10.0, (2,), np.float32), Discrete(3)

    def reset(self, **arguments):
        obs, _ = super().reset(**arguments)
        return obs, self.info()

    def step(self, action):
        return (*super().step(action)[:-1], self.info())

    def info(self):
        return {"action_mask": np.array([1, self.tick % 2, 1], np.int8), "survival_time": float(self.tick)}


class Terse(Clock):
    """A Clock that says how long it has lived when it is over."""

    def step(self, action):
        *moment, info = super().step(action)
        return (*moment, {"survival_time": float(self.tick)} if moment[2] or moment[3] else info)


class Fragile(Masked):
    """Divides by zero in the third step of the environment that was reset with seed 7."""

    def reset(self, *, seed=None, **arguments):
        self.bad = seed == 7
        return super().reset(seed=seed, **arguments)

    def step(self, action):
        return super().step(action) if not self.bad or self.tick < 2 else 1 / 0


for kind in (Masked, Fragile):
    gymnasium.register(id=f"{kind.__name__}-v0", entry_point=kind)


def pair(make, num_envs, workers, feedback=False):
    """The same worlds in one process and in workers, reset."""
    both = make(num_envs), WorkerAdapter(make, num_envs, workers)
    starts = []
    for adapter in both:
        adapter.feed_back(action=feedback, reward=feedback)
        starts.append(adapter.reset(range(3, 3 + num_envs)))
    same(*starts)
    assert both[0].action_names == both[1].action_names
    return both


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").exists() else True
    )


def gone(pids: list[int]) -> bool:
    """Whether all of them end; waits for them, but not for ever."""
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def of(mode, kind=Masked):
    return lambda n: VectorAdapter(SyncVectorEnv([kind] * n, autoreset_mode=mode), "a-world")


@pytest.mark.parametrize(
    ("make", "num_envs", "workers"),
    [
        (lambda n: make_worlds("SavableClock-v0", n), 5, 2),
        (lambda n: make_worlds("Masked-v0", n), 4, 1),
        (of(AutoresetMode.SAME_STEP), 5, 3),
        (of(AutoresetMode.DISABLED), 3, 9),
        (of(AutoresetMode.SAME_STEP, Terse), 5, 3),
    ],
)
def test_every_step_is_that_of_one_process(make, num_envs, workers):
    one, many = pair(make, num_envs, workers, feedback=True)
    assert (one.obs_size, one.n_actions, one.name, one.layout) == (
        many.obs_size,
        many.n_actions,
        many.name,
        many.layout,
    )
    assert len(many._processes) == min(workers, num_envs)
    finals = 0
    for t in range(20):
        action = (np.arange(num_envs) + t) % 2
        a, b = one.step(action), many.step(action)
        same(a, b)
        finals += a.final_obs is not None
    assert finals or one._mode == AutoresetMode.NEXT_STEP
    many.reset(range(9, 9 + num_envs))
    assert not np.array_equal(one.step(action).obs, many.step(action).obs), "control: other seeds, other worlds"
    many.close()


def test_what_a_step_returned_stays_as_it_was():
    _, many = pair(lambda n: make_worlds("Clock-v0", n), 2, 2)
    first = many.step(np.zeros(2, int))
    kept = first.obs.copy()
    assert not np.array_equal(many.step(np.zeros(2, int)).obs, kept)
    assert np.array_equal(first.obs, kept)
    many.close()


def weights(trainer):
    return trainer.population.state_dict()["online"]


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_with_workers_is_that_without_also_when_it_is_resumed_with_others(tmp_path):
    whole, divided = Trainer(clock()), Trainer(clock(workers=3))
    for trainer in (whole, divided):
        trainer.train()
    assert equal(weights(whole), weights(divided))
    assert not equal(weights(whole), weights(Trainer(clock()))), "control: before training they were others"
    for before, after in ((2, 0), (0, 2)):
        folder = tmp_path / f"{before}"
        Trainer(clock(total_steps=80, workers=before, run_dir=str(folder))).train()
        resumed = Trainer.resume(folder, {"total_steps": 160, "workers": after})
        assert isinstance(resumed.rollout.worlds, WorkerAdapter) == bool(after)
        assert not isinstance(resumed.evaluation_worlds(1), WorkerAdapter)
        resumed.train()
        assert equal(weights(whole), weights(resumed))


def test_a_state_goes_from_workers_to_one_process_and_back():
    one, many = pair(lambda n: make_worlds("SavableClock-v0", n), 5, 2)
    pending = 0
    for _ in range(12):  # also where some environments, not the same in both slices, are about to reset
        state = many.get_state()
        pending += 0 < state["over"].sum() < 5
        assert str(one.get_state()) == str(state)
        many.reset(range(90, 95))
        many.set_state(one.get_state())
        one.set_state(state)
        action = np.arange(5) % 2
        same(one.step(action), many.step(action))
    assert pending
    many.close()


def test_an_environment_that_raises_is_named_and_all_workers_end():
    one, many = pair(lambda n: make_worlds("Fragile-v0", n), 6, 3)
    pids = [p.pid for p in many._processes]
    messages = []
    for adapter in (one, many):
        for _ in range(2):
            adapter.step(np.zeros(6, int))
        with pytest.raises(ValueError, match=r"at step 3: step of environment 4 with action 0 raised") as error:
            adapter.step(np.zeros(6, int))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "ZeroDivisionError: division by zero" in messages[1]
    assert gone(pids)
    with pytest.raises(ValueError, match="workers do not run; expected reset before step"):
        many.step(np.zeros(6, int))


def test_a_worker_that_dies_is_named_and_the_last_checkpoint_serves(tmp_path):
    whole = Trainer(clock())
    whole.train()
    settings = {"workers": 2, "checkpoint_every": 40, "run_dir": str(tmp_path / "run")}
    trainer = Trainer(clock(**settings))
    pids = [p.pid for p in trainer.rollout.worlds._processes]
    learn = trainer.learn

    def sabotage():
        learn()
        if trainer.env_steps == 100:
            os.kill(pids[1], signal.SIGKILL)

    trainer.learn = sabotage
    with pytest.raises(ValueError, match=r"SavableClock-v0: worker 1, with environments 4 to 7, was killed by SIGKILL"):
        trainer.train()
    assert gone(pids)
    resumed = Trainer.resume(tmp_path / "run")
    assert resumed.env_steps == 80
    resumed.train()
    assert equal(weights(whole), weights(resumed))


def test_workers_end_with_their_adapter():
    _, many = pair(lambda n: make_worlds("Clock-v0", n), 4, 2)
    pids = [p.pid for p in many._processes]
    assert all(alive(pid) for pid in pids), "control"
    del many
    assert gone(pids)


def script(*lines):
    """A Python process with this folder's worlds, the leader of a process group."""
    code = "\n".join(("import sys", f"sys.path.insert(0, {str(HELPERS)!r})", "import worlds", *lines))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)


def test_workers_do_not_outlive_a_parent_that_was_killed():
    parent = script(
        "import time",
        "from townlet.envs.make import make_worlds",
        "from townlet.envs.workers import WorkerAdapter",
        "many = WorkerAdapter(lambda n: make_worlds('Clock-v0', n), 4, 2)",
        "many.reset(range(4))",
        "print(*(p.pid for p in many._processes), flush=True)",
        "time.sleep(600)",
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids), "control"
    parent.kill()
    parent.wait()
    assert gone(pids)


def test_ctrl_c_saves_and_ends_workers_without_a_word(tmp_path):
    run = tmp_path / "run"
    parent = script(
        "from townlet.training.trainer import Trainer",
        "from worlds import clock",
        f"trainer = Trainer(clock(workers=2, total_steps=10**7, checkpoint_every=40, run_dir={str(run)!r}))",
        "print(*(p.pid for p in trainer.rollout.worlds._processes), flush=True)",
        "trainer.train()",
        "print(trainer.stopped_by.name)",
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    while not list(run.glob("checkpoints/step_*.ckpt")):
        assert parent.poll() is None
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    out, err = parent.communicate()
    assert (out.strip(), parent.returncode) == ("SIGINT", 0)
    assert "Traceback" not in err
    assert len(pids) == 2
    assert gone(pids)
    assert Trainer.resume(run).env_steps > 0


def test_what_cannot_be_divided_says_so(monkeypatch):
    with pytest.raises(ValueError, match="workers is 2; expected 0 for townlet/Town-v0"):
        Config(workers=2)
    with pytest.raises(ValueError, match="workers is -1; expected at least 0"):
        clock(workers=-1)
    _, many = pair(lambda n: make_worlds("Clock-v0", n), 2, 2)
    with pytest.raises(ValueError, match="offers no get_state/set_state"):
        many.get_state()
    with pytest.raises(ValueError, match="cannot be drawn by workers"):
        many.render()
    with pytest.raises(ValueError, match=r"seeds has length 1; expected num_envs = 2"):
        many.reset([1])
    many.close()
    town = WorkerAdapter(lambda n: make_worlds("townlet/Town-v0", n), 4, 2)
    with pytest.raises(ValueError, match="saves its environments as one, which workers=2 divide"):
        town.get_state()
    saved = WorkerAdapter(lambda n: make_worlds("SavableClock-v0", n), 2, 2)
    with pytest.raises(ValueError, match="state has 0 environments; expected 2"):
        saved.set_state({"envs": []})
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="workers is 2; expected 0, since processes cannot fork on"):
        Trainer(clock(workers=2))
