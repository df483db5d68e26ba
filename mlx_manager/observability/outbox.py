"""A bounded queue with a thread of its own: what stands between whoever makes telemetry and a slow receiver of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import logfire

from mlx_manager.observability.losses import Losses

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Outbox(Generic[T]):
    """Sends items in batches by calling `send`, which may take its time and says whether they arrived.

    Takes items without waiting. Those beyond `capacity`, those that `send` fails on and those that are still there when
    it is closed are lost, which `losses` counts under `name`. An item waits at most `delay_s` for others.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[T]], bool],
        losses: Losses,
        *,
        capacity: int = 8192,
        batch_size: int = 512,
        delay_s: float = 1.0,
    ) -> None:
        self.name = name
        self._send = send
        self._losses = losses
        self._capacity = capacity
        self._batch_size = batch_size
        self._delay_s = delay_s
        self._items = deque[T]()
        self._changed = threading.Condition()
        self._is_hurried = False
        self.is_closed = False
        self._in_flight = 0
        self._sent_s = 0.0
        self._is_failing = False
        # A daemon: a receiver that never answers must not hold the process up at exit.
        threading.Thread(target=self._run, name=f"telemetry to {name}", daemon=True).start()

    def put(self, item: T) -> None:
        """Take `item`, or count it as lost. Never waits and never fails."""
        with self._changed:
            if self.is_closed or len(self._items) >= self._capacity:
                self._losses.add(self.name)
                return
            self._items.append(item)
            if len(self._items) in (1, self._batch_size):
                self._changed.notify_all()

    def hurry(self) -> None:
        """Send what is there now, without waiting for it."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def wait(self, timeout_s: float, patience_s: float = math.inf) -> bool:
        """Wait until nothing is left; False when that takes longer than `timeout_s`, or when it was closed before.

        And when a batch has been on its way for `patience_s`: whoever hasn't answered by then isn't waited for again.
        """
        end_s = time.monotonic() + timeout_s
        with self._changed:
            # What is on its way from a closed one is counted as lost: nobody waits for it, at exit least of all.
            while not self.is_closed and not self._is_empty():
                given_up_s = self._sent_s + patience_s if self._in_flight else end_s
                left_s = min(end_s, given_up_s) - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            return self._is_empty()

    def close(self) -> None:
        """Take nothing more, and count as lost what is still here or on its way."""
        with self._changed:
            self.is_closed = True
            self._losses.add(self.name, len(self._items) + self._in_flight)
            self._items.clear()
            self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not self._items and not self._in_flight

    def _run(self) -> None:
        with logfire.suppress_instrumentation():
            while batch := self._next_batch():
                self._deliver(batch)

    def _next_batch(self) -> list[T]:
        """Return the next items, at least one; none when this is closed."""
        with self._changed:
            self._in_flight = 0
            self._is_hurried = self._is_hurried and bool(self._items)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._items or self.is_closed)
            self._changed.wait_for(self._is_due, self._delay_s)
            self._in_flight = min(self._batch_size, len(self._items))
            self._sent_s = time.monotonic()
            # Whoever waits for this outbox was told to wait for a batch that had not left yet.
            self._changed.notify_all()
            return [self._items.popleft() for _ in range(self._in_flight)]

    def _is_due(self) -> bool:
        return len(self._items) >= self._batch_size or self._is_hurried or self.is_closed

    def _deliver(self, batch: list[T]) -> None:
        try:
            is_sent = self._send(batch)
        except Exception:  # noqa: BLE001 -- whatever a receiver's client raises, the batch is lost and the next one is due
            is_sent = False
        if self.is_closed:
            return
        if not is_sent:
            self._losses.add(self.name, len(batch))
        self._report(is_sent)

    def _report(self, is_sent: bool) -> None:
        """Log an outage when it begins and when it ends, not once per batch."""
        if not is_sent and not self._is_failing:
            logger.warning("telemetry sink failing: %(sink)s", {"sink": self.name})
        elif is_sent and self._is_failing:
            logger.warning(
                "telemetry sink works again: %(sink)s lost=%(lost)d",
                {"sink": self.name, "lost": self._losses.by_sink().get(self.name, 0)},
            )
        self._is_failing = not is_sent


def flush_all(outboxes: Sequence[Outbox[Any]], timeout_s: float) -> bool:
    """Send what is in all of them at the same time: one that hangs takes nothing from the others' time.

    Nor all of the time, if it has been hanging for a while: a batch may take `timeout_s` from when it was sent.
    """
    end_s = time.monotonic() + timeout_s
    for outbox in outboxes:
        outbox.hurry()
    waited = [outbox.wait(end_s - time.monotonic(), timeout_s) for outbox in outboxes]
    return all(waited)
