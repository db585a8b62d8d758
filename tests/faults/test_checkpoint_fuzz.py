"""Whatever bytes a checkpoint file holds: its values, or a CheckpointError that names the file; and no code runs."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trees import same

from townlet.runs import checkpoint
from townlet.runs.checkpoint import CheckpointError, DamagedCheckpointError

TREE = {
    "weights": torch.arange(6.0),
    "name": "x",
    "deep": {"keys": np.arange(3, dtype=np.uint64), "list": [1, (2.5, None)]},
}
HEADER, FOOTER = 24, 48
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "step_000000000001.ckpt"


@pytest.fixture(scope="module")
def whole(path: Path) -> bytes:
    checkpoint.write_file(path, TREE)
    return path.read_bytes()


def sealed(payload: bytes, version: int = checkpoint.FORMAT_VERSION) -> bytes:
    """A file around any payload, right in all that a checksum can say."""
    header = struct.pack("<20sI", b"TOWNLET-CHECKPOINT\r\n", version)
    return header + payload + struct.pack("<Q32s8s", len(payload), hashlib.sha256(payload).digest(), b"TOWNEND\n")


def error(path: Path, content: bytes) -> CheckpointError:
    """What reading ``content`` raises, which has to name the file."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_file(path)
    assert str(caught.value).startswith(f"{path} ")
    assert len(str(caught.value)) < 1000
    return caught.value


def test_the_seal_of_these_tests_is_the_real_one(path: Path, whole: bytes) -> None:
    assert sealed(whole[HEADER:-FOOTER]) == whole
    path.write_bytes(whole)
    assert same(checkpoint.read_file(path), TREE)


def test_every_length_but_the_right_one_is_cut_short(path: Path, whole: bytes) -> None:
    for length in range(0, len(whole), 7):
        assert "is cut short" in str(error(path, whole[:length]))


def test_every_region_is_covered_by_a_check(path: Path, whole: bytes) -> None:
    for position in {*range(HEADER), *range(HEADER, len(whole), 11), *range(len(whole) - FOOTER, len(whole))}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        fault = error(path, bytes(damaged))
        assert isinstance(fault, DamagedCheckpointError) or 20 <= position < 24  # the version is not damage


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, piece in edits:
        at = place % (len(data) + 1)
        end = at if kind == "insert" else at + (len(piece) if kind == "overwrite" else place % 97)
        data = data[:at] + (b"" if kind == "delete" else piece) + data[end:]
    return data


edits = st.lists(
    st.tuples(st.sampled_from(["insert", "overwrite", "delete"]), st.integers(0, 10**6), st.binary(max_size=30)),
    min_size=1,
    max_size=4,
)


@often
@given(edits)
def test_any_edit_of_the_file_is_noticed(path: Path, whole: bytes, changes: list[Any]) -> None:
    content = edited(whole, changes)
    if content != whole:
        error(path, content)


@often
@given(edits)
def test_any_edit_under_a_right_checksum_gives_plain_values_or_an_error(path: Path, whole: bytes, changes: Any) -> None:
    path.write_bytes(sealed(edited(whole[HEADER:-FOOTER], changes)))
    try:
        tree = checkpoint.read_file(path)
    except CheckpointError as fault:
        tree = {"fault": str(fault)}
    assert isinstance(tree, dict)
    assert str(path) in tree.get("fault", str(path))


@often
@given(st.binary(max_size=300))
@example(b"PK\x03\x04")
@example(b"\x80\x02}q\x00.")
def test_any_bytes_under_a_right_checksum_are_refused(path: Path, payload: bytes) -> None:
    assert "other than plain values" in str(error(path, sealed(payload)))
    error(path, payload)


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return out.getvalue()


class _Call:
    """Unpickled, calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class _State:
    """Unpickled by an ordinary unpickler, gets a state that it has not asked for."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __setstate__(self, state: dict[str, str]) -> None:
        os.mkdir(state["target"])


def malicious(target: str) -> dict[str, Any]:
    """Values whose unpickling makes a folder."""
    return {
        "os.mkdir": _Call(os.mkdir, target),
        "eval": _Call(eval, f"__import__('os').mkdir({target!r})"),
        "exec": _Call(exec, f"import os; os.mkdir({target!r})"),
        "subprocess": _Call(__import__("subprocess").check_call, ["mkdir", target]),
        "setstate": _State(target),
        "in a list of a dictionary": [{"x": _Call(os.mkdir, target)}],
        "in an ordered dictionary": OrderedDict(x=_Call(os.mkdir, target)),
    }


@pytest.mark.parametrize("name", malicious(""))
@pytest.mark.parametrize("how", ["archive", "compressed", "torch", "torch, old format", "bare"])
def test_no_code_runs(path: Path, tmp_path: Path, name: str, how: str) -> None:
    target = tmp_path / "made"
    pickled = pickle.dumps({"kind": "townlet-run", "x": malicious(str(target))[name]}, protocol=2)
    saved = io.BytesIO()
    if how.startswith("torch"):
        torch.save({"x": malicious(str(target))[name]}, saved, _use_new_zipfile_serialization="old" not in how)
    payload = {"archive": archive(pickled), "compressed": archive(pickled, zipfile.ZIP_DEFLATED), "bare": pickled}
    error(path, sealed(payload.get(how, saved.getvalue())))
    assert not target.exists()
    pickle.loads(pickled)  # the control: an ordinary unpickler makes it
    assert target.is_dir()


def test_a_small_file_that_claims_to_be_large_takes_no_memory(path: Path) -> None:
    bomb = archive(b"\x80\x02" + b"0" * 50_000_000, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "claims to be larger than the file" in str(error(path, sealed(bomb)))
    stored = bytearray(archive(pickle.dumps({}, 2)))
    at = stored.index(b"PK\x01\x02") + 24  # uncompressed size of the first entry, in the directory
    stored[at : at + 4] = struct.pack("<I", 2**31)
    error(path, sealed(bytes(stored)))
    for views in (torch.zeros(1).expand(2**40), torch.zeros(2, 1).expand(2, 2**40)):
        saved = io.BytesIO()
        torch.save({"x": views}, saved)
        assert "another size than its numbers" in str(error(path, sealed(saved.getvalue())))


def test_nesting_has_an_end(path: Path) -> None:
    depth = 100_000
    nested = b"\x80\x02}X\x01\x00\x00\x00x" + b"]" * depth + b"a" * (depth - 1) + b"s."
    assert "other than plain values" in str(error(path, sealed(archive(nested))))


@pytest.mark.parametrize(
    "value", [3, [1], "text", None, torch.zeros(2), {"x": {1, 2}}, {"x": torch.nn.Parameter(torch.zeros(2))},
              {"__numpy__": 3}, {"__numpy__": torch.zeros(2), "dtype": "O", "shape": [1]},
              {"__numpy__": torch.zeros(8, dtype=torch.uint8), "dtype": "<f8", "shape": [7]}, {"__bytes__": "x"}],
    ids=str,
)  # fmt: skip
def test_other_values_than_ours_are_refused(path: Path, value: Any) -> None:
    saved = io.BytesIO()
    torch.save(value, saved)
    assert "other than plain values" in str(error(path, sealed(saved.getvalue())))


def test_what_is_no_file_and_what_is_another_version(path: Path, tmp_path: Path, whole: bytes) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_file(tmp_path)
    for version in (0, 2, 2**32 - 1):
        fault = error(path, sealed(whole[HEADER:-FOOTER], version))
        assert f"has format version {version}; this Townlet reads version 1" in str(fault)
        assert not isinstance(fault, DamagedCheckpointError)
