"""The audit log while the server runs: an entry opened and closed for each request to the model API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from types import TracebackType
from typing import Self

from mlx_manager.chat.request import Origin
from mlx_manager.database import Database
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.audit.running import RunningRows
from mlx_manager.mlx_server.audit.writer import AuditWriter, utc_now


class AuditLog:
    """Holds the entries of the requests that run; `async with` it for as long as requests come.

    Belongs to one event loop. A request costs two turns of a dictionary: its row is made and written
    by `AuditWriter` after its end, or by `RunningRows` once it is older than `running_after_s`. What
    is open when the log is left is written as interrupted. `clock_ns` is the clock that stamps a
    `Timeline`: nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        database: Database,
        *,
        retention_days: float = 30.0,
        now: Callable[[], datetime] = utc_now,
        clock_ns: Callable[[], int] = time.time_ns,
        running_after_s: float = 0.5,
        lease_s: float = 30.0,
    ) -> None:
        self._clock_ns = clock_ns
        self._entries: dict[Origin, Entry] = {}
        self._writer = AuditWriter(database, retention_days=retention_days, now=now)
        self._running = RunningRows(
            database,
            self._entries,
            self._writer.writing,
            now,
            after_s=running_after_s,
            lease_s=lease_s,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        """Rows that could not be kept."""
        return self._writer.lost

    def open(self, origin: Origin, trace_id: str | None) -> Entry:
        """Begin the entry of a request that has just arrived."""
        entry = self._entries[origin] = Entry(origin, trace_id, self._clock_ns())
        self._running.has_entries.set()
        return entry

    def entry_of(self, origin: Origin) -> Entry:
        """Return a request's entry; one that leaves no row when it didn't come through the API."""
        return self._entries.get(origin) or Entry(origin, None, self._clock_ns())

    def close(self, entry: Entry) -> None:
        """Leave the entry to be written as it ended. Never waits; a second time changes nothing."""
        if self._entries.pop(entry.origin, None) is not None:
            entry.end(self._clock_ns())
            self._writer.put(entry)

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        # An empty context, like the writer's: part of no request's trace.
        self._task = asyncio.create_task(
            self._running.run(), name="audit of running requests", context=Context()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()
        if self._task is not None:
            await self._task
        while self._entries:
            _, entry = self._entries.popitem()
            entry.end(self._clock_ns(), is_interrupted=True)
            self._writer.put(entry)
        await self._writer.__aexit__(kind, error, traceback)
