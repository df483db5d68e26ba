"""How long a request may take: what the environment says, unless it was changed at run time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Literal

from mlx_manager.chat.request import Operation
from mlx_manager.database import Database
from mlx_manager.mlx_server.time_limits import service

Source = Literal["default", "environment", "stored"]


class TimeLimits(Mapping[Operation, float]):
    """Seconds by operation, read anew by each request; `change` holds for the next one and after a restart.

    `configured` are the limits of the settings, and `from_environment` those of them that somebody set. Another
    process on the same database hears of a change when it starts.
    """

    def __init__(
        self,
        database: Database,
        configured: Mapping[Operation, float],
        from_environment: frozenset[Operation],
    ) -> None:
        self._database = database
        self._configured = configured
        self._from_environment = from_environment
        self._stored: Mapping[Operation, float] = {}
        self._changing = asyncio.Lock()

    def __getitem__(self, operation: Operation) -> float:
        return self._stored.get(operation, self._configured[operation])

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._configured)

    def __len__(self) -> int:
        return len(self._configured)

    def source(self, operation: Operation) -> Source:
        """Say where a limit comes from."""
        if operation in self._stored:
            return "stored"
        return "environment" if operation in self._from_environment else "default"

    async def load(self) -> None:
        """Read what was changed before this process started. Raises DatabaseUnavailable."""
        async with self._database.transaction() as session:
            self._stored = await service.stored_limits(session)

    async def change(self, changes: Mapping[Operation, float | None]) -> None:
        """Store new limits, in seconds; None goes back to the settings. Raises DatabaseUnavailable."""
        async with self._changing:
            async with self._database.transaction() as session:
                for operation, seconds in changes.items():
                    await service.store_limit(session, operation, seconds)
                stored = await service.stored_limits(session)
            # Only now: what could not be kept must not hold until the next start.
            self._stored = stored
