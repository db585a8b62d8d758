"""Checkpoint files, which are written atomically and verified before anything in them is used.

A file consists of 24 bytes of header (magic, format version), the payload (``torch.save`` of plain values) and 48 bytes
of footer (payload length, SHA-256 of the payload, end magic). Reading verifies header, length and checksum first and
then unpickles with ``weights_only=True``. So a foreign, cut or damaged file gives an error that says what is wrong with
it, and reading a file never runs code.

Writing goes to a temporary file in the same folder, which is flushed to the disk and then renamed. A reader sees the
old checkpoint or the new one, but never half of one. Older checkpoints are deleted only after the new one is in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from ..support import files

FORMAT_VERSION = 1
_MAGIC = b"TOWNLET-CHECKPOINT\r\n"  # 20 bytes; the line end shows whether a transfer rewrote line ends
_END = b"TOWNEND\n"
_HEADER = struct.Struct("<20sI")
_FOOTER = struct.Struct("<Q32s8s")
_NAME = re.compile(r"step_\d{12}\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names the file and says what is wrong with it."""


class DamagedCheckpointError(CheckpointError):
    """The bytes are not the ones that were written: some were cut off, flipped or overwritten."""


class _HashingFile(io.RawIOBase):
    """Passes bytes on and hashes them. It keeps the first OSError for the caller: torch's writer would hide it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
                self.size += len(data)
            except OSError as error:
                self.error = error
        return len(data)


class _Section(io.RawIOBase):
    """The payload of an open checkpoint, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.start + self.position)
        n = max(0, min(len(buffer), self.size - self.position))
        data = self.file.read(n)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def write_file(path: str | Path, tree: dict[str, Any], *, durable: bool = True) -> None:
    """Write ``tree`` to ``path`` atomically.

    Args:
        path: the file.
        tree: nested dicts, lists and tuples of tensors, arrays, numbers, strings and bytes.
        durable: whether the file has to be on the disk on return, and not only with the operating system.

    Raises:
        CheckpointError: the disk is full, the file cannot be written, or ``tree`` holds something else. What was at
            ``path`` before is untouched.
    """
    try:
        with files.replacing(path, "wb", durable=durable) as file:
            _write_stream(file, tree)
    except OSError as error:
        raise CheckpointError(
            f"{path} was not written ({error.strerror or error}); earlier checkpoints are untouched"
        ) from error


def _write_stream(file: BinaryIO, tree: dict[str, Any]) -> None:
    file.write(_HEADER.pack(_MAGIC, FORMAT_VERSION))
    sink = _HashingFile(file)
    torch.save(_plain(tree), cast(BinaryIO, sink))  # torch.save needs nothing but write()
    if sink.error is not None:
        raise sink.error
    file.write(_FOOTER.pack(sink.size, sink.digest.digest(), _END))


def read_file(path: str | Path) -> dict[str, Any]:
    """The tree that ``write_file`` stored, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, foreign, of another format version, cut or damaged.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = _verify(file, path)
            _require_uncompressed(_buffered(_Section(file, _HEADER.size, size)), size)
            tree = torch.load(_buffered(_Section(file, _HEADER.size, size)), weights_only=True, map_location="cpu")
        if not isinstance(tree, dict):
            raise TypeError(f"{type(tree).__name__} instead of a dictionary")
        return _restored(tree)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except CheckpointError:
        raise
    except Exception as error:  # the bytes are as they were written, but torch's unpickler refuses them
        reason = str(error).partition("\n")[0][:300]
        raise CheckpointError(f"{path} holds something other than plain values ({reason})") from None


def _require_uncompressed(payload: BinaryIO, size: int) -> None:
    """Refuse an archive whose entries claim to be larger than the file. torch would allocate what they claim."""
    with zipfile.ZipFile(payload) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("it claims to be larger than the file")


def _buffered(section: _Section) -> Any:
    return io.BufferedReader(section, buffer_size=1 << 20)


def _verify(file: BinaryIO, path: Path) -> int:
    """Verify header, footer and checksum; return the payload's size in bytes."""
    total = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size and _MAGIC.startswith(header[:20]):
        raise DamagedCheckpointError(f"{path} is cut short ({total} bytes)")
    if not header.startswith(_MAGIC):
        raise DamagedCheckpointError(f"{path} is not a Townlet checkpoint")
    _, version = _HEADER.unpack(header)
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this Townlet reads version {FORMAT_VERSION}")
    size = total - _HEADER.size - _FOOTER.size
    if size < 0:
        raise DamagedCheckpointError(f"{path} is cut short ({total} bytes)")
    file.seek(_HEADER.size + size)
    stated, digest, end = _FOOTER.unpack(file.read(_FOOTER.size))
    if end != _END or stated != size:
        raise DamagedCheckpointError(f"{path} is cut short or was appended to ({total} bytes)")
    file.seek(_HEADER.size)
    actual = hashlib.sha256()
    left = size
    while left and (block := file.read(min(left, 1 << 20))):
        actual.update(block)
        left -= len(block)
    if actual.digest() != digest:
        raise DamagedCheckpointError(f"{path} is damaged (its checksum does not match)")
    return size


# ---- plain values ---------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """``value`` for ``torch.save``: arrays and bytes become tagged tensors, and a slice gets a storage of its own."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()  # so that any machine can read it
        return value.clone() if value.untyped_storage().nbytes() != value.numel() * value.element_size() else value
    if isinstance(value, np.ndarray):
        return {"__numpy__": torch.from_numpy(np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy()),
                "dtype": value.dtype.str, "shape": list(value.shape)}  # fmt: skip
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray)):
        return {"__bytes__": torch.tensor(list(value), dtype=torch.uint8)}
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_plain(v) for v in value) if type(value) in (list, tuple) else tuple(_plain(v) for v in value)
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"a checkpoint cannot hold {type(value).__name__}; expected tensors, arrays, numbers, strings, bytes"
    )


def _key(key: Any) -> Any:
    if isinstance(key, (str, int)):
        return key
    raise CheckpointError(f"a checkpoint cannot hold the key {key!r}; expected a string or an integer")


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        if "__numpy__" in value:
            raw = value["__numpy__"].numpy()
            return raw.view(np.dtype(value["dtype"])).reshape(value["shape"])
        if "__bytes__" in value:
            return value["__bytes__"].numpy().tobytes()
        return {k: _restored(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_restored(v) for v in value)
    if type(value) is torch.Tensor:
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            raise ValueError("a tensor of another size than its numbers")  # few numbers that claim to be many
        return value
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a {type(value).__name__}")


# ---- the folder -----------------------------------------------------------------------------------------------------


def save(folder: str | Path, step: int, tree: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of ``step`` and delete all but the newest ones.

    Args:
        folder: the folder of the checkpoints, made where it is missing.
        step: environment steps per member so far.
        tree: what `write_file` takes.
        keep: how many checkpoints stay.

    Returns:
        The file.

    Raises:
        CheckpointError: the folder or the file cannot be written.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            folder.mkdir()
            files.sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made ({error.strerror or error})") from error
    path = folder / f"step_{step:012d}.ckpt"
    write_file(path, tree)
    for old in (*_listed(folder)[:-keep], *folder.glob(".step_*.tmp")):  # a killed process leaves a .tmp
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def set_aside_after(folder: str | Path, step: int) -> list[Path]:
    """Rename checkpoints newer than ``step`` to ``*.aside``.

    A run that continues from ``step`` did not write them.

    Returns:
        The renamed files.
    """
    moved = []
    for path in _listed(Path(folder)):
        if int(path.stem.removeprefix("step_")) > step:
            moved.append(path.rename(path.with_name(path.name + ".aside")))
    return moved


def exists(folder: str | Path) -> bool:
    """Whether ``folder`` holds a checkpoint, readable or not."""
    return bool(_listed(Path(folder)))


def latest(folder: str | Path) -> Path:
    """The newest checkpoint in ``folder``.

    Raises:
        CheckpointError: there is none.
    """
    found = _listed(Path(folder))
    if not found:
        raise _none_in(folder)
    return found[-1]


def read_newest(folder: str | Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint in ``folder`` that is not damaged.

    Args:
        folder: the folder of the checkpoints.
        say: receives a line for each damaged checkpoint.

    Returns:
        The checkpoint's file and its tree.

    Raises:
        CheckpointError: there is no checkpoint, all are damaged, or one is whole but cannot be used. In the last case
            no earlier one is tried: a run that went on from it would lose a checkpoint that another version wrote, or
            that the disk did not give this time.
    """
    damage: DamagedCheckpointError | None = None
    for path in reversed(_listed(Path(folder))):
        try:
            return path, read_file(path)
        except DamagedCheckpointError as error:
            damage = damage or error
            say(f"WARNING: {error}; going back to the checkpoint before it")
    raise _none_in(folder) if damage is None else CheckpointError(f"{damage}, and no earlier checkpoint is whole")


def _none_in(folder: str | Path) -> CheckpointError:
    return CheckpointError(f"{folder} holds no checkpoint (step_*.ckpt)")


def _listed(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*.ckpt") if _NAME.fullmatch(p.name))
