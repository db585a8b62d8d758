"""What Ctrl-C and SIGTERM do while Townlet runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """A context in which SIGINT and SIGTERM do not kill: the first is put into the yielded list.

    A second signal raises KeyboardInterrupt. Outside the main thread nothing changes, since only the main thread may
    install handlers.
    """
    caught: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """A context in which SIGTERM unwinds like an exception, with exit code 143.

    ``Trainer.train`` answers the signal in its own way, which saves the run first.
    """

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
