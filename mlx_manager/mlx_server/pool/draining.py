"""When the process is told to stop: requests get some time to finish, and then a clear error."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def draining(grace_s: float, end_requests: Callable[[], None]) -> Iterator[None]:
    """When the process is told to stop, call `end_requests` after `grace_s`.

    The web server only waits for its connections, and cancels them in the end, which no client could tell from a
    crash.
    """
    loop = asyncio.get_running_loop()
    with on_stop(lambda: loop.call_later(grace_s, end_requests)):
        yield


@contextmanager
def on_stop(act: Callable[[], object]) -> Iterator[None]:
    """On SIGINT or SIGTERM, call `act` in the running event loop; whoever handled the signal before still does.

    Does nothing outside the main thread, where there are no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, previous in before.items():
            if previous is not None:
                signal.signal(number, previous)
