"""Checkpoint files: whole, atomic, checked; nothing that goes wrong costs an older checkpoint."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from trees import same
from worlds import clock

from townlet.runs import checkpoint
from townlet.runs.checkpoint import CheckpointError
from townlet.runs.metrics import Records
from townlet.training.trainer import Trainer

TREE = {
    "tensor": torch.arange(6.0).view(2, 3),
    "slice": torch.arange(1000)[10:12],
    "mask": torch.tensor([True, False]),
    "keys": np.array([[1, 2**63], [3, 4]], dtype=np.uint64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "bytes": b"\x00\xff",
    "none": b"",
    "numbers": [1, 2.5, True, None, "text", 2**100, (1, "a")],
    "scalar": np.float64(1.25),
}


def test_what_is_written_comes_back(tmp_path):
    checkpoint.write_file(tmp_path / "a", TREE)
    assert same(TREE, checkpoint.read_file(tmp_path / "a"))
    assert not same(TREE, {**TREE, "slice": torch.arange(2)})  # the comparison itself can tell
    assert (tmp_path / "a").stat().st_size < 7000  # the slice did not bring the thousand numbers around it


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Linear(1, 1)])
def test_only_plain_values_are_written(tmp_path, value):
    with pytest.raises(CheckpointError, match=f"cannot hold {type(value).__name__}"):
        checkpoint.write_file(tmp_path / "a", {"x": value})
    with pytest.raises(CheckpointError, match="cannot hold the key"):
        checkpoint.write_file(tmp_path / "a", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a"
    checkpoint.write_file(path, TREE)
    whole = path.read_bytes()
    for length in [1, 10, 20, 23, 24, 60, 72, len(whole) // 2, len(whole) - 48, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            checkpoint.read_file(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="appended to"):
        checkpoint.read_file(path)


def test_every_flipped_byte_of_a_sample_is_noticed(tmp_path):
    path = tmp_path / "a"
    checkpoint.write_file(path, TREE)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 97), len(whole) - 1, len(whole) - 45, len(whole) - 20]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.read_file(path)
    path.write_bytes(whole)
    checkpoint.read_file(path)


def test_foreign_files_are_named_as_such(tmp_path):
    path = tmp_path / "a"
    for content in (b"hello, this is a text file of some length", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a Townlet checkpoint"):
            checkpoint.read_file(path)
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="is not a Townlet checkpoint"):
        checkpoint.read_file(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cut short"):
        checkpoint.read_file(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_file(tmp_path / "missing")


def test_another_format_version_is_named(tmp_path):
    path = tmp_path / "a"
    checkpoint.write_file(path, TREE)
    data = bytearray(path.read_bytes())
    data[20:24] = struct.pack("<I", 99)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="format version 99; this Townlet reads version 1"):
        checkpoint.read_file(path)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    """A file with right checksums whose pickle would make a folder: refused, and the folder is not made."""
    target = tmp_path / "made"
    monkeypatch.setattr(checkpoint, "_plain", lambda tree: {"x": _Bomb(target)})
    checkpoint.write_file(tmp_path / "a", {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="other than plain values"):
        checkpoint.read_file(tmp_path / "a")
    assert not target.exists()
    pickle.load(io.BytesIO(pickle.dumps(_Bomb(target))))  # the control: an ordinary unpickler does make it
    assert target.exists()


class _FullDisk:
    """A file that takes ``room`` bytes and then answers like a full disk."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.file.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()


@pytest.mark.parametrize("room", [0, 30, 2000, "all but the footer"])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, room):
    old = checkpoint.save(tmp_path, 1, TREE, keep=1)
    before = old.read_bytes()
    room = len(before) - 10 if room == "all but the footer" else room
    monkeypatch.setattr(
        "builtins.open",
        lambda p, mode="r", *a, **k: _FullDisk(io.open(p, mode, *a, **k), room),  # noqa: SIM115, UP020
    )
    with pytest.raises(
        CheckpointError, match=r"not written \(No space left on device\); earlier checkpoints are untouched"
    ):
        checkpoint.save(tmp_path, 2, TREE, keep=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == before
    assert same(TREE, checkpoint.read_file(checkpoint.latest(tmp_path)))
    checkpoint.save(tmp_path, 2, TREE, keep=1)  # the control: with room it is written, and the old one goes
    assert checkpoint.latest(tmp_path) != old
    assert not old.exists()


def test_the_operating_systems_own_limit_on_a_file_is_reported(tmp_path):
    old = checkpoint.save(tmp_path, 1, TREE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="not written"):
            checkpoint.save(tmp_path, 2, {**TREE, "more": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == [old.name]


def test_the_last_n_are_kept_and_leftovers_ignored(tmp_path):
    for step in (5, 100, 20):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step_000000000020.ckpt", "step_000000000100.ckpt"]
    (tmp_path / ".step_000000000999.ckpt.1.tmp").write_bytes(b"half")
    (tmp_path / "step_9.ckpt").write_bytes(b"not ours")
    assert checkpoint.read_file(checkpoint.latest(tmp_path)) == {"step": 100}
    checkpoint.save(tmp_path, 101, {"step": 101})
    assert not list(tmp_path.glob(".*")), "what a killed process left goes with the next checkpoint"


def test_a_checkpoint_has_its_name_once_it_and_the_records_are_on_the_disk(tmp_path, monkeypatch):
    """The order that a loss of power needs: records, checkpoint, its name, the folder; only then older ones go."""
    done, real = [], {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def note(name, shown):
        def spy(*args, **options):
            done.append((name, Path(shown(args[0])).name))
            return real[name](*args, **options)

        return spy

    run = Trainer(clock(total_steps=40, run_dir=str(tmp_path / "run")))
    run.train()
    records = Records(run.folder, step=run.env_steps)
    monkeypatch.setattr(os, "fsync", note("fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "replace", note("replace", str))
    monkeypatch.setattr(os, "unlink", note("unlink", str))
    run.env_steps, run.config = 44, clock(**{**run.config.to_dict(), "keep_checkpoints": 1})
    run.save(records)
    monkeypatch.undo()
    records.close()
    temporary = ".step_000000000044.ckpt.tmp"
    expected = ["metrics.csv", records._events.path.name, temporary, temporary, "checkpoints", "step_000000000040.ckpt"]
    assert [name for _, name in done[:6]] == expected
    assert [call for call, _ in done[:6]] == ["fsync", "fsync", "fsync", "replace", "fsync", "unlink"]


def test_an_empty_folder_has_no_latest(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.latest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        checkpoint.save(tmp_path / "file" / "below", 1, {})
