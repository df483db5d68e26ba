"""A server that is killed under a burst of requests: the file is whole, and only the end of the burst is missing."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.store import StoreOptions, TraceStore
from tests.support.process import Started, started
from tests.support.running import wait_until
from tests.traces.records import put, span, trace_id

CLIENTS = 8
OPTIONS = StoreOptions()
# Of a request whose model isn't there: SERVER, chat, route.
SPANS = 3
BODY = b'{"model": "no/such", "prompt": "x"}'


class Burst:
    """Clients that ask without a pause; `answered` says when they were, and the ids of the traces."""

    def __init__(self, server: Started) -> None:
        self.answered: list[tuple[float, str]] = []
        self._address = server.url.removeprefix("http://")

    def ask(self) -> None:
        with closing(HTTPConnection(self._address, timeout=60)) as connection:
            try:
                while True:
                    connection.request(
                        "POST", "/v1/completions", BODY, {"Content-Type": "application/json"}
                    )
                    answer = connection.getresponse()
                    answer.read()
                    self.answered.append((time.monotonic(), answer.headers["X-Trace-ID"]))
            except (HTTPException, OSError):
                return  # it was killed


@contextmanager
def bursting(server: Started) -> Iterator[Burst]:
    burst = Burst(server)
    clients = [threading.Thread(target=burst.ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield burst
    finally:
        server.process.kill()
        for client in clients:
            client.join()


def test_a_server_killed_under_a_burst_loses_what_was_being_written_and_never_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "traces.db"
    with started(tmp_path, "server") as server:
        with bursting(server) as burst:
            wait_until(lambda: len(burst.answered) * SPANS > 3 * OPTIONS.batch, 120)
        server.wait()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with TraceReader(path) as reader:
        found = [reader.get_trace(answered) for _, answered in burst.answered]
    whole = [trace is not None and trace.summary.span_count == SPANS for trace in found]
    lost = len(whole) - whole.index(False) if False in whole else 0
    killed_s, _ = burst.answered[-1]
    lingered = sum(killed_s - answered_s < OPTIONS.linger_s for answered_s, _ in burst.answered)
    # One batch was being written while the next one came together.
    assert (lost - lingered) * SPANS <= OPTIONS.batch

    with TraceStore(path) as store:
        put(store, span(1, 1))
        assert store.get_trace(trace_id(1)) is not None
        assert store.get_trace(burst.answered[0][1]) is not None
    assert not list(tmp_path.glob("*.broken*"))
