"""Give requests that take longer a row before their end, so that a killed server leaves it behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from mlx_manager.chat.request import Origin
from mlx_manager.database import Database, explain
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.audit.instance import this_instance
from mlx_manager.mlx_server.audit.waiting import happens

logger = logging.getLogger(__name__)


class RunningRows:
    """Writes a row for each of `entries` that is older than `after_s`, and closes those of dead processes.

    `writing` is held while rows are written: whoever writes the end of a request must know its row.
    A row's `seen_at` is renewed at a third of `lease_s`, after which another process may call it
    abandoned; sooner where it can see that this process has ended.
    """

    def __init__(
        self,
        database: Database,
        entries: Mapping[Origin, Entry],
        writing: asyncio.Lock,
        now: Callable[[], datetime],
        *,
        after_s: float,
        lease_s: float,
    ) -> None:
        self.has_entries = asyncio.Event()
        self._database = database
        self._entries = entries
        self._writing = writing
        self._now = now
        self._after_s = after_s
        self._lease_s = lease_s
        self._instance = this_instance()
        self._renew_at_s = 0.0
        self._look_at_s: float | None = 0.0
        self._is_closing = asyncio.Event()

    def close(self) -> None:
        """Let `run` return soon."""
        self._is_closing.set()
        self.has_entries.set()

    async def run(self) -> None:
        """Work until `close`; rest while there is nothing to do."""
        while not self._is_closing.is_set():
            await self._try_each()
            if not self._entries and not self._is_closing.is_set():
                self.has_entries.clear()
            rest_s = None if self._look_at_s is None else self._look_at_s - time.monotonic()
            await happens(self.has_entries, rest_s)
            await happens(self._is_closing, self._after_s)

    async def _try_each(self) -> None:
        try:
            await self._close_abandoned()
            await self._write_new()
            await self._renew()
        except Exception as error:  # noqa: BLE001 - the log may fail, the server must not
            # The writer tells of it; there is another try after `after_s`, and the request's end is written anyway.
            logger.debug(
                "audit log can't be written: running requests wait (%(trouble)s)",
                {"trouble": explain(error)},
            )

    async def _close_abandoned(self) -> None:
        if self._look_at_s is None or time.monotonic() < self._look_at_s:
            return
        before = self._now() - timedelta(seconds=self._lease_s)
        self._look_at_s = time.monotonic() + self._lease_s
        async with self._database.sessions.begin() as session:
            others = await service.close_abandoned(session, self._instance, before)
        if not others:
            self._look_at_s = None

    async def _write_new(self) -> None:
        async with self._writing:
            # Chosen under the lock: none of those that are open now can have been written as ended.
            latest_ns = round((self._now().timestamp() - self._after_s) * 1e9)
            new = [
                entry
                for entry in self._entries.values()
                if entry.row_id is None and entry.started_ns <= latest_ns
            ]
            if not new:
                return
            async with self._database.sessions.begin() as session:
                ids = await service.record_running(session, new, self._instance, self._now())
            for entry, row_id in zip(new, ids, strict=True):
                entry.row_id = row_id

    async def _renew(self) -> None:
        if not self._entries or time.monotonic() < self._renew_at_s:
            return
        self._renew_at_s = time.monotonic() + self._lease_s / 3
        async with self._writing, self._database.sessions.begin() as session:
            await service.keep_running(session, self._instance, self._now())
