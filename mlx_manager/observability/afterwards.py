"""Work that nobody waits for: done a moment later, one piece at a time, between what somebody does wait for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

# When many answers end in one step of the engine, their clients' next requests are in by then.
DELAY_S = 0.05
# Longer than one request's books, shorter than what a stream would notice.
TURN_S = 0.001
# Beyond this nothing is put off any more: a server that is always busy would never come to it.
MOST_WAITING = 256

Work = Callable[[], None]
Later = Callable[[Work], None]


def at_once(work: Work) -> None:
    """Do `work` now: the `Later` of whoever has no event loop, or wants no delay."""
    work()


class Afterwards:
    """Books of finished requests, closed when the event loop has time. `later` is its `Later`.

    Spans, metrics and rows of a request cost the event loop more than all its tokens. Done as the answer ends, those of
    32 answers that end together would stand between the engine and its next 32 prompts.
    """

    def __init__(self, delay_s: float = DELAY_S) -> None:
        self._delay_s = delay_s
        self._waiting = deque[Work]()
        self._timer: asyncio.Handle | None = None

    def later(self, work: Work) -> None:
        """Do `work` soon, on the running event loop, in the order of the calls."""
        self._waiting.append(work)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._delay_s, self._step)

    def drain(self) -> None:
        """Do at once all that waits."""
        while self._waiting:
            self._do_one()

    def _step(self) -> None:
        end_s = time.perf_counter() + TURN_S
        while self._waiting and (time.perf_counter() < end_s or len(self._waiting) > MOST_WAITING):
            self._do_one()
        # Then a turn of the loop: what has arrived meanwhile goes first.
        self._timer = asyncio.get_running_loop().call_soon(self._step) if self._waiting else None

    def _do_one(self) -> None:
        work = self._waiting.popleft()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the request is answered; its books must not harm the next
            logger.error("books not closed: %(error)s", {"error": type(error).__name__})
