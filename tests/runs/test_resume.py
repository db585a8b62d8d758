"""Stopping and going on: bit for bit where the world can be saved, honestly announced where it cannot."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from trees import same
from worlds import clock, tiny

from townlet.runs import checkpoint
from townlet.runs.checkpoint import CheckpointError
from townlet.runs.metrics import read_metrics
from townlet.runs.resume import read_run
from townlet.support.files import only_writer
from townlet.support.signals import stop_signals
from townlet.training.trainer import Trainer

CASES = {
    "town": lambda **c: tiny(prioritised=True, epsilon_ladder=2.0, tau=0.1, ema_decay=0.9, **c),
    "town, hard sync": lambda **c: tiny(eval_every=40, **c),
    "clock": lambda **c: clock(prioritised=True, **c),
    "no memory": lambda **c: clock(memory=False, **c),
    "between stages": lambda **c: tiny(curriculum=["0 size=4", "100 size=5"], lr_end=0.1, lr_decay_steps=200, **c),
    "at a stage": lambda **c: tiny(curriculum=["0 size=4", "120 size=5"], **c),
}


def straight(make):
    run = Trainer(make(total_steps=240))
    run.train()
    return run.state_dict()


def halves(make, folder):
    """120 steps, a checkpoint, a new process's worth of objects, 120 more."""
    Trainer(make(total_steps=120, run_dir=str(folder))).train()
    second = Trainer.resume(folder, {"total_steps": 240})
    assert second.env_steps == 120
    second.train()
    return second.state_dict()


def without_config(tree):
    return {k: v for k, v in tree.items() if k != "config"}


@pytest.mark.parametrize("case", CASES)
def test_train_2n_is_train_n_save_load_train_n(tmp_path, case):
    assert same(without_config(straight(CASES[case])), without_config(halves(CASES[case], tmp_path / "run")))


def _zero_state(tree):
    tree["population"]["h"].zero_()
    tree["population"]["c"].zero_()


SPOILED = {
    "hidden states": _zero_state,
    "acting draws": lambda t: t["population"].update(act_count=0),
    "target": lambda t: t["population"].update(target=t["population"]["online"]),
    "adam moments": lambda t: [v.zero_() for v in t["population"]["adam_m"].values()],
    "adam steps": lambda t: t["population"].update(adam_steps=1),
    "replay draws": lambda t: t["replay"].update(samples=0),
    "priorities": lambda t: t["replay"]["priority"].fill_(1.0),
    "replay contents": lambda t: t["replay"]["data"]["reward"].zero_(),
    "replay counts": lambda t: t["replay"]["count"].add_(1),
    "sync counter": lambda t: t["learner"].update(updates=t["learner"]["updates"] - 1),
    "observations": lambda t: t["obs"].zero_(),
    "reset flags": lambda t: t["reset"].logical_not_(),
    "over flags": lambda t: t["over"].logical_not_(),
    "legal actions": lambda t: t["legal"].logical_not_(),
    "worlds": lambda t: t["worlds"]["world"]["cents"].__iadd__(500),
    "steps": lambda t: t.update(env_steps=60),
}


@pytest.fixture(scope="module")
def expected_weights():
    return straight(_for_spoiling)["population"]["online"]


def _for_spoiling(**changes):
    return tiny(prioritised=True, sync_every=4, **changes)


@pytest.mark.parametrize("what", [*SPOILED, "nothing"])
def test_every_part_of_a_checkpoint_matters(tmp_path, what, expected_weights):
    """The control of the test above: with one part spoiled, the weights after the second half are others."""
    first = Trainer(_for_spoiling(total_steps=120, run_dir=str(tmp_path / "run")))
    first.train()
    path = checkpoint.latest(tmp_path / "run" / "checkpoints")
    tree = checkpoint.read_file(path)
    SPOILED.get(what, lambda t: None)(tree)
    checkpoint.write_file(path, tree)
    second = Trainer.resume(tmp_path / "run", {"total_steps": 240})
    second.train()
    assert same(expected_weights, second.state_dict()["population"]["online"]) is (what == "nothing")


def test_resuming_in_the_middle_of_an_interval_keeps_the_records_whole(tmp_path):
    """Statistics between two rows of metrics.csv survive the interruption; rows after the checkpoint are dropped."""
    straight_run = Trainer(clock(total_steps=240, run_dir=str(tmp_path / "a")))
    straight_run.train()
    first = Trainer(clock(total_steps=100, run_dir=str(tmp_path / "b")))
    first.train()
    metrics = tmp_path / "b" / "metrics.csv"
    last_line = metrics.read_text().splitlines()[-1]
    metrics.write_text(
        "\n".join([*metrics.read_text().splitlines()[:-2], last_line.replace("100,", "999,", 1), "12"]) + "\n"
    )
    Trainer.resume(tmp_path / "b", {"total_steps": 240}).train()
    a, b = read_metrics(tmp_path / "a" / "metrics.csv"), read_metrics(metrics)
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for name in ("updates", "epsilon"):
        assert [r[name] for r in a] == [r[name] for r in b]


def test_a_world_that_cannot_be_saved_starts_fresh_and_says_so(tmp_path):
    first = Trainer(clock(env="Clock-v0", total_steps=120, run_dir=str(tmp_path / "run")))
    first.train()
    cut_obs, cut_reset, steps = first.rollout.obs.clone(), first.rollout.reset.clone(), int(first.replay._count[0])
    tree = read_run(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    assert tree["worlds"] is None

    def resumed():
        said = []
        run = Trainer.resume(tmp_path / "run", {"total_steps": 240}, say=said.append)
        return run, [s for s in said if s.startswith("resume: ")]

    (run, said), (again, _) = resumed(), resumed()
    assert len(said) == 1
    assert "Clock-v0 offers no get_state/set_state" in said[0]
    assert "stored as truncated" in said[0]
    assert "not a bit-exact" in said[0]
    # the cut episode's last observation is stored, masked and without termination: that is what truncation looks like
    row = torch.arange(8) * run.replay.ring + steps
    stored = {k: v[row] for k, v in run.replay._data.items()}
    assert torch.equal(stored["obs"], cut_obs.flatten(0, 1))
    assert torch.equal(stored["reset"], cut_reset.flatten())
    assert not stored["mask"].any()
    assert not stored["terminated"].any()
    assert not stored["reward"].any()
    assert run.rollout.reset.all()
    assert not run.rollout.over.any()
    assert (run.rollout.obs[..., 0] == 0).all()
    assert run.rollout.restarts == 1
    fresh = Trainer(clock(env="Clock-v0"))
    assert not torch.equal(run.rollout.obs, fresh.rollout.obs)  # other episodes than at the start of the run
    run.train()
    again.train()
    assert same(run.state_dict(), again.state_dict())  # from a saved seed: resuming twice is the same


def test_a_savable_world_resumes_in_silence(tmp_path):
    Trainer(clock(total_steps=80, run_dir=str(tmp_path / "run"))).train()
    said = []
    Trainer.resume(tmp_path / "run", say=said.append)
    assert not [s for s in said if s.startswith("resume: ")]


def test_only_some_settings_can_change(tmp_path):
    Trainer(clock(total_steps=80, run_dir=str(tmp_path / "run"))).train()
    with pytest.raises(ValueError, match=r"lr is given, but cannot change when a run is resumed; .*total_steps"):
        Trainer.resume(tmp_path / "run", {"lr": 1.0, "total_steps": 90})
    run = Trainer.resume(tmp_path / "run", {"total_steps": 90, "eval_episodes": 2, "keep_checkpoints": 1})
    assert run.config.total_steps == 90
    assert run.config.eval_episodes == 2
    other = Trainer(clock(hidden_size=9))
    with pytest.raises(ValueError, match="hidden_size is 9; expected 8, as in the checkpoint"):
        other.load_state_dict(run.state_dict())


def test_a_moved_run_and_a_single_checkpoint_can_be_resumed(tmp_path):
    Trainer(clock(total_steps=80, checkpoint_every=40, run_dir=str(tmp_path / "run"))).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert Trainer.resume(tmp_path / "moved").env_steps == 80
    early = Trainer.resume(tmp_path / "moved" / "checkpoints" / "step_000000000040.ckpt")
    assert early.env_steps == 40
    assert early.folder == tmp_path / "moved"
    assert not (tmp_path / "run").exists()


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_it_goes_on(tmp_path):
    folder = tmp_path / "run"
    Trainer(clock(total_steps=80, checkpoint_every=40, run_dir=str(folder))).train()
    newest = checkpoint.latest(folder / "checkpoints")
    damage(newest)
    before, said = contents(folder), []
    again = Trainer.resume(folder, {"total_steps": 120}, say=said.append)
    assert again.env_steps == 40
    assert f"WARNING: {newest} is damaged (its checksum does not match); going back to the checkpoint before it" in said
    assert contents(folder) == before  # nothing is changed before the training goes on
    again.config = clock(**{**again.config.to_dict(), "keep_checkpoints": 1})
    again.train()
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["step_000000000080.ckpt.aside", "step_000000000120.ckpt"]
    assert (folder / "checkpoints" / names[0]).read_bytes() == before[newest.relative_to(folder)]
    through = Trainer(clock(total_steps=120))
    through.train()
    assert same(without_config(again.state_dict()), without_config(through.state_dict()))
    assert [r["step"] for r in read_metrics(folder / "metrics.csv")] == [40, 40, 80, 80, 120, 120]


def test_a_run_without_a_whole_checkpoint_is_left_as_it_is(tmp_path):
    folder = tmp_path / "run"
    Trainer(clock(total_steps=80, checkpoint_every=40, run_dir=str(folder))).train()
    whole = contents(folder)
    for path in (folder / "checkpoints").iterdir():
        damage(path)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"080.ckpt is damaged .*, and no earlier checkpoint is whole"):
        Trainer.resume(folder, say=[].append)
    newest = checkpoint.latest(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="is damaged"):  # named itself, it alone counts
        Trainer.resume(newest, say=[].append)
    data = bytearray(before[newest.relative_to(folder)])
    data[20] = 99  # whole, but of another Townlet: going back behind it would lose it
    newest.write_bytes(data)
    older = newest.with_name("step_000000000040.ckpt")
    older.write_bytes(whole[older.relative_to(folder)])
    with pytest.raises(CheckpointError, match="has format version 99"):
        Trainer.resume(folder, say=[].append)
    older.write_bytes(before[older.relative_to(folder)])
    newest.write_bytes(before[newest.relative_to(folder)])
    assert contents(folder) == before


def test_what_is_no_run_is_named(tmp_path):
    checkpoint.write_file(tmp_path / "other.ckpt", {"kind": "something else"})
    with pytest.raises(CheckpointError, match="expected the checkpoint of a training run"):
        read_run(tmp_path / "other.ckpt")
    checkpoint.write_file(tmp_path / "stray.ckpt", Trainer(clock()).state_dict())
    with pytest.raises(ValueError, match="expected a run folder, or a checkpoint in its folder 'checkpoints'"):
        Trainer.resume(tmp_path / "stray.ckpt")  # the folder above is nobody's run
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Trainer.resume(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a run folder"):
        Trainer(clock()).save()


def test_right_bytes_with_wrong_contents_are_a_checkpoint_error(tmp_path):
    Trainer(clock(total_steps=80, run_dir=str(tmp_path / "run"))).train()
    path = checkpoint.latest(tmp_path / "run" / "checkpoints")
    tree = checkpoint.read_file(path)
    wrong = [{k: v for k, v in tree.items() if k != gone} for gone in tree if gone != "kind"]
    wrong += [{**tree, name: value} for name in tree if name != "kind" for value in (None, 3, "x")]
    wrong += [{**tree, "obs": torch.zeros(3)}, {**tree, "obs": tree["obs"].double()}, {**tree, "reset": tree["obs"]}]
    taken, named = set(), []
    for spoiled in wrong:
        checkpoint.write_file(path, spoiled, durable=False)
        try:
            Trainer.resume(tmp_path / "run", {"total_steps": 100}, say=[].append)
        except CheckpointError as error:
            named.append(str(path) in str(error))
        else:
            taken |= {(k, str(v)) for k, v in spoiled.items() if v is not tree[k]}
    assert taken == {("worlds", "None"), ("env_steps", "3"), ("restarts", "3"), ("elapsed", "3")}
    assert named == [True] * (len(wrong) - 5)  # and legal=None is what was there


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(tmp_path):
    folder, said = tmp_path / "run", []
    Trainer(clock(total_steps=80, run_dir=str(folder)))
    again = Trainer.resume(folder, {"total_steps": 120}, say=said.append)
    assert f"{folder} was stopped before its first checkpoint; it begins anew" in said
    again.train()
    through = Trainer(clock(total_steps=120))
    through.train()
    assert same(without_config(again.state_dict()), without_config(through.state_dict()))
    with pytest.raises(ValueError, match="lr is given, but cannot change"):
        Trainer.resume(folder, {"lr": 0.1})


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(tmp_path):
    folder = tmp_path / "run"
    Trainer(clock(total_steps=120, checkpoint_every=40, keep_checkpoints=3, run_dir=str(folder))).train()
    again = Trainer.resume(
        folder / "checkpoints" / "step_000000000040.ckpt", {"total_steps": 60, "keep_checkpoints": 1}
    )
    again.train()
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == [f"step_000000000{n}" for n in ("060.ckpt", "080.ckpt.aside", "120.ckpt.aside")]
    assert Trainer.resume(folder).env_steps == 60
    assert [r["step"] for r in read_metrics(folder / "metrics.csv")] == [40, 40, 60, 60]


def test_two_processes_do_not_write_one_run(tmp_path):
    folder = tmp_path / "run"
    Trainer(clock(total_steps=80, run_dir=str(folder))).train()
    before = contents(folder)
    with only_writer(folder):
        with pytest.raises(ValueError, match="another process is training in this folder"):
            Trainer.resume(folder, {"total_steps": 100}).train()
        assert contents(folder) == before
        worker = os.fork()
        if worker == 0:
            signal.pause()
    try:
        Trainer.resume(folder, {"total_steps": 100}).train()  # a worker that outlives a killed trainer keeps no claim
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_with_a_checkpoint(tmp_path, number):
    run = Trainer(clock(total_steps=10**6, run_dir=str(tmp_path / "run")))
    step, handler = run.act_step, signal.getsignal(number)

    def act_step():
        step()
        if run.env_steps == 80:
            signal.raise_signal(number)

    run.act_step = act_step
    run.train()
    assert run.stopped_by == number
    assert run.env_steps == 80
    assert signal.getsignal(number) == handler
    assert read_run(checkpoint.latest(tmp_path / "run" / "checkpoints"))["env_steps"] == 80
    on = Trainer.resume(tmp_path / "run", {"total_steps": 160})
    on.train()
    through = Trainer(clock(total_steps=160))
    through.train()
    assert same(without_config(on.state_dict()), without_config(through.state_dict()))


def test_a_second_signal_does_not_wait():
    with stop_signals() as caught:
        signal.raise_signal(signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def body():
        with stop_signals() as caught:
            seen.append((signal.getsignal(signal.SIGINT), caught))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, [])]
