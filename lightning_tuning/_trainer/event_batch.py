"""Events that go to an event file of TensorBoard together."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
    _AsyncWriter,
)
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from lightning_tuning._trainer.crc32c import masked_crc32c

_SECONDS = 1.0
"""So long an event may wait for the next; TensorBoard looks every thirty."""


class EventBatch:
    """Collects events of one file for a second at most, and writes them at once.

    A thread of TensorBoard's takes checksums of each event, opens the file and closes it, and for
    all that fights for the interpreter's lock with the thread that trains: half a millisecond each
    time. Here the thread that trains writes, while the other one has nothing to do. What comes a
    second or more after what was written last is written at once, and everything when the file is
    flushed, as Lightning does where it logs, or closed.

    Args:
        queue: What hands events to TensorBoard's thread.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._flush, self._close = queue.flush, queue.close
        self._waiting: list[tuple[float, int, Callable[[], Any]]] = []
        self._written = -_SECONDS
        queue.flush, queue.close = self.flush, self.close

    def add(self, step: int, summary: Callable[[], Any]) -> None:
        """Take an event.

        Args:
            step: Its step.
            summary: Makes its values, when it is written.
        """
        self._waiting.append((time.time(), step, summary))
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def flush(self) -> None:
        """Write all that waits, as the file's own method."""
        self._write()
        self._flush()

    def close(self) -> None:
        """Write all that waits, as the file's own method."""
        if not self._queue._closed:
            self._write()
        self._close()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._written = time.monotonic()
        records = [
            _record(Event(wall_time=at, step=step, summary=made).SerializeToString())
            for at, step, summary in waiting
            if (made := summary()).value
        ]
        if records:
            self._append(b"".join(records))

    def _append(self, data: bytes) -> None:
        queue = self._queue
        # under its lock nothing comes in, and what has come in is written then
        with queue._lock:
            queue._byte_queue.join()
            queue._check_worker_status()
            queue._writer._writer.write(data)


def batch_of(file: Any) -> EventBatch | None:
    """Return the batch of a ``FileWriter`` of torch's; None where its inside is not known.

    There is one for each file as long as it is open.
    """
    queue = getattr(getattr(file, "event_writer", None), "_async_writer", None)
    if not isinstance(queue, _AsyncWriter) or not isinstance(queue._writer, RecordWriter):
        return None
    batch = getattr(queue.flush, "__self__", None)
    return batch if isinstance(batch, EventBatch) else EventBatch(queue)


def _record(data: bytes) -> bytes:
    """Return a record of TFRecord: length and data, each with its checksum behind it."""
    header = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
    return header + checks[0] + data + checks[1]
