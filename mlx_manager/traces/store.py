"""`TraceStore`: the traces of this machine in one SQLite file, written on a thread of its own."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from mlx_manager.database import explain
from mlx_manager.errors import TracesUnavailable
from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces import writing
from mlx_manager.traces.inbox import Inbox, Promise, Record
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.retention import Limits, Retention
from mlx_manager.traces.samples import Sample
from mlx_manager.traces.schema import is_broken, move_aside, open_for_writing

logger = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
# Longest silence between two complaints about the same file.
COMPLAIN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How much is kept, and how it is written.

    A batch is written after `linger_s` or when it has `batch` spans: so much a killed process loses at most. Beyond
    `capacity` waiting spans, further ones are dropped and counted.
    """

    max_age_s: float = 7 * 86400.0
    max_content_age_s: float = 86400.0
    max_bytes: int = 2**30
    linger_s: float = 0.25
    batch: int = 1000
    capacity: int = 20_000
    retention_every_s: float = 30.0


class TraceStore(TraceReader):
    """A `TraceReader` that also takes spans and samples. Raises TracesUnavailable when the file can't be opened."""

    def __init__(
        self,
        path: Path,
        options: StoreOptions | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(path)
        self._options = options or StoreOptions()
        self._clock_ns = clock_ns
        self._retention = Retention(_limits(self._options))
        self._inbox = Inbox(self._options.capacity, self._options.batch)
        # The rest of the queue is for our own: others send thousands at once.
        self._others_capacity = self._options.capacity * 3 // 4
        self._lock = threading.Lock()
        self._dropped = 0
        self._taken = 0
        self._settled = 0
        self._progress = threading.Condition()
        self._complained_s = float("-inf")
        self._is_closing = False
        self._connection = open_for_writing(path)
        self._thread = threading.Thread(target=self._run, name="trace-store", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Spans and samples that were lost since the start: too many at once, or the file could not be written."""
        return self._dropped

    @property
    def has_room_for_others(self) -> bool:
        """Whether spans of other processes may come in: the last quarter of the queue is for our own."""
        return len(self._inbox) < self._others_capacity

    def put(self, promise: Promise) -> bool:
        """Take a record that `promise` makes on the store's thread; False when it was dropped. Never waits."""
        # The lock is held for as long as an append takes.
        with self._lock:
            if self._is_closing or not self._inbox.put(promise):
                self._dropped += 1
                return False
            self._taken += 1
            return True

    def put_others(self, spans: Sequence[SpanRecord]) -> int:
        """Take spans of another process, and return how many. Never waits.

        All of them, or none while there is no room for all: whoever sent them can try again. Of more than there is ever
        room for, as many as there is room for now; the others are dropped.
        """
        promises = [partial(_same, span) for span in spans]
        with self._lock:
            room = 0 if self._is_closing else max(0, self._others_capacity - len(self._inbox))
            if room < len(spans) <= self._others_capacity:
                return 0
            taken = promises[:room]
            self._inbox.extend(taken)
            self._taken += len(taken)
            if taken:
                self._dropped += len(spans) - len(taken)
            return len(taken)

    def put_sample(self, sample: Sample) -> bool:
        """Take a sample as it is, in the same way."""
        return self.put(lambda: sample)

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was taken so far can be read; False when `timeout_s` passed first."""
        with self._lock:
            goal = self._taken
        self._inbox.hurry()
        with self._progress:
            return self._progress.wait_for(lambda: self._settled >= goal, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what waits and close the file; False when that took longer than `timeout_s` and what's left is lost."""
        with self._lock:
            self._is_closing = True
        self._inbox.hurry()
        self._thread.join(timeout_s)
        self.close_connections()
        if self._thread.is_alive():
            logger.warning(
                "trace store unfinished: after %(timeout_s)g s its last spans are lost",
                {"timeout_s": timeout_s},
            )
            return False
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(5.0)

    def _run(self) -> None:
        swept_s = float("-inf")
        while not self._is_closing or len(self._inbox):
            # First of all: what has become too old while no server ran goes when the next one does.
            if time.monotonic() - swept_s >= self._options.retention_every_s:
                self._guarded(self._sweep)
                swept_s = time.monotonic()
            if not self._is_closing:
                self._inbox.wait(self._options.retention_every_s, self._options.linger_s)
            promises = self._inbox.take()
            if promises:
                self._write(promises)
        self._connection.close()

    def _write(self, promises: list[Promise]) -> None:
        records = list(self._kept(promises))
        lost = self._guarded(
            lambda: writing.store_records(self._connection, records, self._clock_ns())
        )
        self._drop(len(promises) - len(records) + (len(records) if lost is None else lost))
        with self._progress:
            self._settled += len(promises)
            self._progress.notify_all()

    def _kept(self, promises: list[Promise]) -> Iterator[Record]:
        for promise in promises:
            try:
                yield promise()
            except Exception as error:  # noqa: BLE001 - one span that can't be read must not cost the others
                self._complain(f"a span could not be read: {type(error).__name__}")

    def _sweep(self) -> int:
        return self._retention.enforce(self._connection, self._clock_ns())

    def _guarded(self, work: Callable[[], int]) -> int | None:
        """Do it; None when the file did not let us, which is said but never stops the thread."""
        try:
            return work()
        except sqlite3.Error as error:
            self._complain(f"{self.path} can't be written: {explain(error)}")
            if is_broken(error):
                self._begin_anew()
        except Exception as error:  # noqa: BLE001 - telemetry loses its own data and goes on
            self._complain(f"spans could not be stored: {type(error).__name__}")
        return None

    def _begin_anew(self) -> None:
        self._connection.close()
        self.close_connections()
        try:
            move_aside(self.path)
            self._connection = open_for_writing(self.path)
        except (TracesUnavailable, OSError) as error:
            self._complain(str(error))

    def _drop(self, count: int) -> None:
        if count:
            with self._lock:
                self._dropped += count

    def _complain(self, message: str) -> None:
        if time.monotonic() - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = time.monotonic()
            logger.error("trace store can't be written: %(reason)s", {"reason": message})


def _same(span: SpanRecord) -> SpanRecord:
    return span


def _limits(options: StoreOptions) -> Limits:
    max_age_ns = round(options.max_age_s * NS_PER_S)
    max_content_age_ns = round(options.max_content_age_s * NS_PER_S)
    return Limits(max_age_ns, max_content_age_ns, options.max_bytes)
