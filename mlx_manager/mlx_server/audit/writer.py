"""Write the audit log behind the requests' backs: they leave a row and go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import Self

from sqlalchemy.exc import DataError, IntegrityError

from mlx_manager.database import DATABASE_TROUBLE, Database, explain
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.service import Record
from mlx_manager.mlx_server.audit.waiting import happens

logger = logging.getLogger(__name__)

BATCH_ROWS = 200

# A century: before any row, and well inside what a `datetime` can say.
_LONGEST_RETENTION_DAYS = 36_500


def utc_now() -> datetime:
    """Return the wall clock's time."""
    return datetime.now(UTC)


class AuditWriter:
    """Takes rows at once and writes them in batches; `async with` it for as long as requests come.

    Belongs to one event loop. A row waits at most `batch_interval_s` for others to share its
    transaction. While the database is in trouble rows wait longer; those beyond `capacity` are
    lost, which `lost` counts. Leaving writes what still waits, with one last try. Rows older than
    `retention_days` are deleted at the start and every `sweep_interval_s`.
    """

    def __init__(
        self,
        database: Database,
        *,
        retention_days: float = 30.0,
        capacity: int = 10_000,
        now: Callable[[], datetime] = utc_now,
        batch_interval_s: float = 0.25,
        retry_interval_s: float = 2.0,
        sweep_interval_s: float = 3600.0,
    ) -> None:
        self.lost = 0
        # Held while rows are written: `RunningRows` gives some of the records a row of their own.
        self.writing = asyncio.Lock()
        self._database = database
        self._retention = timedelta(days=min(retention_days, _LONGEST_RETENTION_DAYS))
        self._capacity = capacity
        self._now = now
        self._batch_interval_s = batch_interval_s
        self._retry_interval_s = retry_interval_s
        self._sweep_interval_s = sweep_interval_s
        self._sweep_at_s = time.monotonic()
        self._waiting = deque[Record]()
        self._has_rows = asyncio.Event()
        self._has_batch = asyncio.Event()
        self._is_closing = asyncio.Event()
        self._is_in_trouble = False
        self._is_losing = False
        self._reported_lost = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, record: Record) -> None:
        """Leave `record` to be written. Never waits and never fails."""
        if self._is_closing.is_set() or len(self._waiting) >= self._capacity:
            self.lost += 1
            return
        self._waiting.append(record)
        self._has_rows.set()
        if len(self._waiting) >= BATCH_ROWS:
            self._has_batch.set()

    async def __aenter__(self) -> Self:
        # An empty context: what the writer does is part of no request's trace.
        self._task = asyncio.create_task(self._run(), name="audit writer", context=Context())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for event in (self._is_closing, self._has_rows, self._has_batch):
            event.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        is_last_round = False
        while not is_last_round:
            await self._sweep_if_due()
            await self._next_batch()
            is_last_round = self._is_closing.is_set()
            await self._flush()
            self._report_losses()
        self.lost += len(self._waiting)
        self._report_losses()

    async def _sweep_if_due(self) -> None:
        if time.monotonic() < self._sweep_at_s:
            return
        self._sweep_at_s = time.monotonic() + self._sweep_interval_s
        try:
            async with self._database.sessions.begin() as session:
                await service.delete_older_than(session, self._now() - self._retention)
        except DATABASE_TROUBLE as error:
            self._report_trouble(error)

    async def _next_batch(self) -> None:
        """Return when a batch is full, has waited long enough or is the last, or a sweep is due."""
        if not await happens(self._has_rows, self._sweep_at_s - time.monotonic()):
            return
        if self._is_in_trouble:
            await happens(self._is_closing, self._retry_interval_s)
        else:
            await happens(self._has_batch, self._batch_interval_s)

    async def _flush(self) -> None:
        self._has_batch.clear()
        while self._waiting:
            batch = list(islice(self._waiting, BATCH_ROWS))
            if not await self._settle(batch):
                return
            for _ in batch:
                self._waiting.popleft()
        # Set for good once the log is left, which may have been while this batch was written.
        if not self._is_closing.is_set():
            self._has_rows.clear()

    async def _settle(self, batch: Sequence[Record]) -> bool:
        """Write `batch`; say whether it is done with. After trouble it is not, and comes again."""
        try:
            async with self.writing, self._database.sessions.begin() as session:
                await service.record(session, batch)
        except Exception as error:  # noqa: BLE001 - the log may fail, the writer must not
            if _is_trouble(error):
                self._report_trouble(error)
                return False
            # The fault is in a row, and would be there again at the next try.
            self.lost += len(batch)
            return True
        self._report_recovery()
        return True

    def _report_trouble(self, error: BaseException) -> None:
        if not self._is_in_trouble:
            logger.error(
                "audit log can't be written: its rows wait (%(trouble)s)",
                {"trouble": explain(error)},
            )
        self._is_in_trouble = True

    def _report_recovery(self) -> None:
        if self._is_in_trouble:
            logger.warning("audit log is written again")
        self._is_in_trouble = False

    def _report_losses(self) -> None:
        is_losing = self.lost > self._reported_lost
        if is_losing and not self._is_losing:
            logger.error("audit log loses rows: %(lost)d so far", {"lost": self.lost})
        self._is_losing, self._reported_lost = is_losing, self.lost


def _is_trouble(error: Exception) -> bool:
    """Tell a database that may recover from a row that it will never take."""
    return isinstance(error, DATABASE_TROUBLE) and not isinstance(error, DataError | IntegrityError)
