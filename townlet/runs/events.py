"""TensorBoard's event files, written without a thread or a queue.

What was added is in the file at once, and errors name the file.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..support.files import append_whole, naming


class EventFile:
    """An event file; a run gets one each time it is begun or resumed.

    Args:
        folder: the run folder.
        step: where the run stands. Above 0, TensorBoard forgets what earlier files hold after that step.

    Raises:
        OSError: the file cannot be made or written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # TensorBoard reads the files in the order of their names, whatever the clock says
        stamps = [p.name.split(".")[3] for p in folder.glob("events.out.tfevents.*")]
        stamp = max([int(time.time()), *(int(s) + 1 for s in stamps if s.isdigit())])
        self.path = folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._record = RecordWriter(self)
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115  closed by close()
        self._add(step=step, file_version="brain.Event:2")
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step=step + 1, session_log=start)

    def write(self, data: bytes) -> None:
        """Append bytes to the file; TensorBoard's record writer calls this."""
        append_whole(self._file, data, self.path)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one event with ``scalars``, tag -> value, at ``step``."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(step=step, summary=self._summary(value=values))

    def _add(self, **fields: Any) -> None:
        self._record.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def sync(self) -> None:
        """Make sure that what was added survives a loss of power."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
