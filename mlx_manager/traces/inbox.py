"""Where records wait for the store's thread: bounded, and cheap for whoever puts one in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.samples import Sample

Record = SpanRecord | Sample
Promise = Callable[[], Record]


class Inbox:
    """Takes promises of records from any thread, the event loop's too, and gives them out in batches."""

    def __init__(self, capacity: int, batch: int) -> None:
        self._capacity = capacity
        self._batch = batch
        self._waiting: deque[Promise] = deque()
        self._has_some = threading.Event()
        self._has_batch = threading.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, promise: Promise) -> bool:
        """Take it, or return False when too many wait."""
        if len(self._waiting) >= self._capacity:
            return False
        self.extend((promise,))
        return True

    def extend(self, promises: Sequence[Promise]) -> None:
        """Take them all: whoever calls has looked whether there is room."""
        self._waiting.extend(promises)
        # Looking costs less than setting, and mostly they are set.
        if not self._has_some.is_set():
            self._has_some.set()
        if len(self._waiting) >= self._batch and not self._has_batch.is_set():
            self._has_batch.set()

    def wait(self, timeout_s: float, linger_s: float) -> None:
        """Return when there is something and then a batch is full or `linger_s` over; or after `timeout_s`."""
        if self._has_some.wait(timeout_s):
            self._has_batch.wait(linger_s)

    def hurry(self) -> None:
        """Let `wait` return at once."""
        self._has_some.set()
        self._has_batch.set()

    def take(self) -> list[Promise]:
        """The next batch; empty when nothing waits."""
        # Cleared first: what is put in from here on sets them again.
        self._has_some.clear()
        self._has_batch.clear()
        count = min(len(self._waiting), self._batch)
        taken = [self._waiting.popleft() for _ in range(count)]
        if self._waiting:
            self._has_some.set()
            self._has_batch.set()
        return taken
