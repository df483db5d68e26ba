"""The audit log on its own: what goes in comes out, until it is too old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from tests.audit.rows import (
    MadeRecord,
    make_record,
    make_records,
    stored,
    stored_ids,
    values,
    with_changes,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
ONLY_WHILE_RUNNING = {"id", "instance", "seen_at"}


async def record(database: Database, records: list[MadeRecord]) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, records)


async def test_a_row_comes_back_as_it_was(database: Database) -> None:
    made = with_changes(make_record(), key_id="key", session_id="session")
    await record(database, [made])
    [read] = await stored(database)
    assert values(read) == values(made.row)
    said = {name for name, value in values(read).items() if value is not None}
    assert said == values(read).keys() - ONLY_WHILE_RUNNING


async def test_a_time_comes_back_in_utc(database: Database) -> None:
    await record(database, [make_record(started_at=NOON.astimezone(timezone(timedelta(hours=9))))])
    [read] = await stored(database)
    assert read.started_at == NOON
    assert read.started_at.tzinfo is UTC


async def test_what_has_a_row_is_written_over_it_among_those_that_have_none(
    database: Database,
) -> None:
    await record(database, make_records(3))
    [_, second, _] = await stored(database)
    ended = with_changes(make_record("ended"), finish_reason=None, output_tokens=99)
    ended.row_id = second.id
    await record(database, [make_record("3"), ended, make_record("4")])
    assert await stored_ids(database) == ["0", "ended", "2", "3", "4"]
    [row] = [row for row in await stored(database) if row.id == second.id]
    assert (row.output_tokens, row.finish_reason) == (99, None)


async def test_only_requests_before_the_moment_are_forgotten(database: Database) -> None:
    instant = timedelta(microseconds=1)
    await record(
        database,
        [
            make_record("before", NOON - instant),
            # The same instant as "before", written down in another time zone.
            make_record("abroad", (NOON - instant).astimezone(timezone(timedelta(hours=9)))),
            make_record("at", NOON),
        ],
    )
    async with database.sessions.begin() as session:
        await service.delete_older_than(session, NOON)
    assert await stored_ids(database) == ["at"]
