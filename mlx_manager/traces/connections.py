"""A few connections that readers take in turns."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_manager.traces.schema import open_for_reading

# Reading more at once than this would only take processor time from the server.
MOST = 4


class Connections:
    """Opens a connection when it is needed and keeps it for the next reader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places = threading.BoundedSemaphore(MOST)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        # Counts how often all were closed: one that was out at that time isn't taken back.
        self._generation = 0

    @contextmanager
    def lease(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses until the block ends; waits while all are in use."""
        with self._places:
            with self._lock:
                generation = self._generation
                connection = self._idle.pop() if self._idle else None
            connection = connection or open_for_reading(self._path)
            try:
                yield connection
            finally:
                self._give_back(connection, generation)

    def close(self) -> None:
        """Close all; those in use close when they come back."""
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _give_back(self, connection: sqlite3.Connection, generation: int) -> None:
        with self._lock:
            if generation == self._generation:
                self._idle.append(connection)
                return
        connection.close()
