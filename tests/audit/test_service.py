"""The audit log on its own: what goes in comes out, in pages, until it is too old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.tables import AuditRow
from tests.audit.rows import make_row, make_rows, stored, stored_ids, values

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


async def record(database: Database, rows: list[AuditRow]) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, rows)


async def test_a_row_comes_back_as_it_was(database: Database) -> None:
    row = make_row()
    row.key_id = "key"
    await record(database, [row])
    [read] = await stored(database)
    assert values(read) == values(row)
    assert None not in {value for name, value in values(read).items() if name != "id"}


async def test_a_time_comes_back_in_utc(database: Database) -> None:
    await record(database, [make_row(started_at=NOON.astimezone(timezone(timedelta(hours=9))))])
    [read] = await stored(database)
    assert read.started_at == NOON
    assert read.started_at.tzinfo is UTC


async def test_pages_of_the_log_meet_without_a_gap(database: Database) -> None:
    await record(database, make_rows(5))
    async with database.sessions() as session:
        first = await service.recent(session, 2)
        second = await service.recent(session, 2, before=first[-1].id)
    assert [row.request_id for row in [*first, *second]] == ["4", "3", "2", "1"]


async def test_only_requests_before_the_moment_are_forgotten(database: Database) -> None:
    instant = timedelta(microseconds=1)
    await record(
        database,
        [
            make_row("before", NOON - instant),
            # The same instant as "before", written down in another time zone.
            make_row("abroad", (NOON - instant).astimezone(timezone(timedelta(hours=9)))),
            make_row("at", NOON),
        ],
    )
    async with database.sessions.begin() as session:
        await service.delete_older_than(session, NOON)
    assert await stored_ids(database) == ["at"]
