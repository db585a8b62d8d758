"""Writing the files of a run.

A file is whole or not there, it is on the disk where the caller asks for that, and one process at a time writes a run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

_locked: set[int] = set()  # descriptors of the folders that this process holds


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A context in which every OSError names a file: one that names none (a full disk, at a write) names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: str | Path, mode: str = "w", *, durable: bool = True) -> Iterator[Any]:
    """A file open for writing that becomes ``path`` when it is whole.

    A reader sees what was there before, or the new file, but never half of one. When writing fails, nothing is left
    behind. A kill may leave a temporary file, which the next writing of ``path`` replaces.

    Args:
        path: the name that the file gets in the end.
        mode: "w" for text, "wb" for bytes.
        durable: whether the file has to be on the disk when the context ends, and not only with the operating system.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    with naming(path):
        try:
            with open(temporary, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. Others are refused, since reading from a pipe would never end.

    Raises:
        OSError: ``path`` is no regular file, or it cannot be opened.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return open(path, "rb")


def read_small(path: Path, largest: int) -> bytes:
    """All bytes of a regular file that is expected to be small.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has more than ``largest`` bytes.
    """
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"{path} has more than {largest} bytes; expected at most {largest}")
    return data


def append_whole(file: RawIOBase, data: bytes, path: Path) -> None:
    """Append all of ``data`` to an unbuffered file, or nothing where that fails.

    Args:
        file: the file, open for writing at its end.
        data: the bytes to append.
        path: the file's name, for the error.

    Raises:
        OSError: writing failed; the error names ``path``.
    """
    with naming(path):
        before = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def sync_folder(folder: Path) -> None:
    """Make sure that names that were made, moved or removed in ``folder`` survive a loss of power."""
    with contextlib.suppress(OSError):  # some file systems cannot do this; the rename itself is atomic anyway
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A context in which no other process writes this run.

    The operating system ends the claim with the process, whether the process ends by itself or is killed.

    Raises:
        ValueError: another process writes the run.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is taken: another process is training in this folder; expected it to end before resuming"
            ) from None
        except OSError:
            pass  # a file system without locks
        _locked.add(descriptor)
        yield
    finally:
        _locked.discard(descriptor)
        os.close(descriptor)


def _forked() -> None:
    """Drop the claims in a child. A world's worker process may outlive a killed parent and must not keep its claim."""
    while _locked:
        os.close(_locked.pop())


os.register_at_fork(after_in_child=_forked)
