"""One daemon thread for telemetry's slow moments, so that nobody waits for a network longer than they said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class Background:
    """Does one thing after the other on a thread of its own.

    The thread is there before it is needed: Python 3.12 and later start none while the interpreter shuts down. It
    is a daemon, and threads that are started from it are too, so none of them holds the process up at exit.
    """

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, work: Callable[[], object], timeout_s: float | None = None) -> bool:
        """Do `work` and wait for it; False when it says so or takes longer than `timeout_s`, and goes on unwatched.

        Raises what `work` raises, unless that is too late.
        """
        try:
            return self.begin(work).result(timeout_s) is not False
        except TimeoutError:
            return False

    def begin(self, work: Callable[[], object]) -> Future[object]:
        """Do `work` when its turn comes, and wait for nothing."""
        done: Future[object] = Future()
        self._waiting.put((work, done))
        return done

    def _run(self) -> None:
        while True:
            work, done = self._waiting.get()
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 -- it belongs to whoever waits for `done`
                done.set_exception(error)
            else:
                done.set_result(result)
