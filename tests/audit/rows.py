"""Rows of the audit log, made and read back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit.search import EVERYTHING, search
from mlx_manager.mlx_server.audit.tables import AuditRow


@dataclass
class MadeRecord:
    """A record whose row is `row`: what an `Entry` is for the writer, with every column as a test wants it."""

    row: AuditRow
    row_id: int | None = None

    def values(self) -> dict[str, object]:
        columns = dataclasses.asdict(self.row)
        return {name: columns[name] for name in columns.keys() - {"id", "instance", "seen_at"}}


def make_row(request_id: str = "request", started_at: datetime | None = None) -> AuditRow:
    """Make a row in which every column of an ended request but the key's says something."""
    return AuditRow(
        started_at=started_at or datetime.now(UTC),
        request_id=request_id,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        endpoint="/v1/chat/completions",
        operation="chat",
        model="asked",
        response_model="answered",
        backend="local",
        stream=True,
        status=200,
        outcome="failed",
        error_code="engine_failed",
        error_type="server_error",
        duration_s=1.5,
        queue_s=0.25,
        time_to_first_token_s=0.5,
        input_tokens=20,
        cached_tokens=16,
        output_tokens=5,
        finish_reason="stop",
        client_address="127.0.0.1",
    )


def make_record(request_id: str = "request", started_at: datetime | None = None) -> MadeRecord:
    return MadeRecord(make_row(request_id, started_at))


def make_records(count: int) -> list[MadeRecord]:
    return [make_record(str(number)) for number in range(count)]


def with_changes(record: MadeRecord, **columns: object) -> MadeRecord:
    for name, value in columns.items():
        setattr(record.row, name, value)
    return record


def values(row: AuditRow) -> dict[str, object]:
    """Return everything that the row says, without the id that the database gave it."""
    return {**dataclasses.asdict(row), "id": None}


async def stored(database: Database, limit: int = 100_000) -> Sequence[AuditRow]:
    """Read the log, newest row first."""
    async with database.sessions() as session:
        return await search(session, EVERYTHING, limit)


async def stored_ids(database: Database) -> list[str]:
    """Read the log's request ids in the order they were written."""
    return [row.request_id for row in reversed(await stored(database))]


async def eventually_stored(database: Database, count: int, within_s: float = 10.0) -> None:
    """Wait until `count` rows are in the log."""

    async def are_stored() -> bool:
        return len(await stored(database)) >= count

    await eventually(are_stored, within_s)


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    """Wait until something holds that nothing announces."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - what is in a file raises no event
            await asyncio.sleep(0.01)
