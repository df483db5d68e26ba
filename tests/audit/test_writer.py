"""The writer: rows arrive in batches, survive trouble, age, and never stop a request."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event, text

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.writer import AuditWriter
from tests.audit.rows import (
    MadeRecord,
    eventually,
    eventually_stored,
    make_record,
    make_records,
    stored,
    stored_ids,
    values,
)

FOR_EVER_S = 3600.0
IN_TROUBLE = "audit log can't be written: its rows wait (%(trouble)s)"
RECOVERED = "audit log is written again"
LOSING = "audit log loses rows: %(lost)d so far"


def put_all(writer: AuditWriter, rows: list[MadeRecord]) -> None:
    for row in rows:
        writer.put(row)


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the templates of what was logged."""
    return [str(line.msg) for line in caplog.records if line.name.startswith("mlx_manager")]


async def eventually_logged(caplog: pytest.LogCaptureFixture, line: str) -> None:
    async def is_logged() -> bool:
        return line in log_lines(caplog)

    await eventually(is_logged)


async def past_the_first_sweep(writer: AuditWriter, database: Database) -> None:
    writer.put(make_record())
    await eventually_stored(database, 1)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the database's write lock, as another process would."""
    other = sqlite3.connect(file)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


@contextmanager
def inserts(database: Database) -> Iterator[list[int]]:
    """Note how many rows each INSERT wrote."""
    noted: list[int] = []

    def note(*execution: object) -> None:
        statement, parameters = execution[2], execution[3]
        if str(statement).startswith("INSERT"):
            noted.append(len(parameters) if isinstance(parameters, list) else 1)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield noted
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)


async def test_a_row_is_soon_in_the_log_as_it_was_put(database: Database) -> None:
    record = make_record()
    async with AuditWriter(database) as writer:
        writer.put(record)
        await eventually_stored(database, 1)
    [read] = await stored(database)
    assert values(read) == values(record.row)


async def test_a_full_batch_does_not_wait_for_more(database: Database) -> None:
    async with AuditWriter(database, batch_interval_s=FOR_EVER_S) as writer:
        put_all(writer, make_records(200))
        await eventually_stored(database, 200)


async def test_rows_share_a_transaction_and_a_statement(database: Database) -> None:
    rows = make_records(450)
    for row in rows[::3]:
        row.row.response_model = row.row.queue_s = None
    with inserts(database) as written:
        async with AuditWriter(database) as writer:
            put_all(writer, rows)
    assert written == [200, 200, 50]


async def test_a_batch_fills_while_it_waits(database: Database) -> None:
    with inserts(database) as written:
        async with AuditWriter(database, batch_interval_s=0.2) as writer:
            writer.put(make_record("0"))
            await asyncio.sleep(0.02)
            writer.put(make_record("1"))
            await eventually_stored(database, 2)
    assert written == [2]


async def test_a_row_after_a_full_batch_waits_for_others_again(database: Database) -> None:
    with inserts(database) as written:
        async with AuditWriter(database, batch_interval_s=0.2) as writer:
            put_all(writer, make_records(200))
            await eventually_stored(database, 200)
            writer.put(make_record())
            await asyncio.sleep(0.02)
            writer.put(make_record())
            await eventually_stored(database, 202)
    assert written == [200, 2]


async def test_a_writer_without_rows_rests(database: Database) -> None:
    async with AuditWriter(database, batch_interval_s=0.0) as writer:
        await past_the_first_sweep(writer, database)
        before_s = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before_s < 0.02


async def test_leaving_writes_all_that_waits_in_order(database: Database) -> None:
    async with AuditWriter(database, batch_interval_s=FOR_EVER_S) as writer:
        put_all(writer, make_records(150))
        await asyncio.sleep(0.05)
        put_all(writer, [make_record(str(number)) for number in range(150, 1000)])
    assert await stored_ids(database) == [str(number) for number in range(1000)]
    assert writer.lost == 0


async def test_rows_beyond_capacity_are_lost_and_told_of_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    writer = AuditWriter(database, capacity=3)
    put_all(writer, make_records(5))
    async with writer:
        await eventually_stored(database, 3)
    assert writer.lost == 2
    assert await stored_ids(database) == ["0", "1", "2"]
    assert log_lines(caplog) == [LOSING]


async def test_a_row_after_the_end_is_lost_without_an_error(database: Database) -> None:
    async with AuditWriter(database) as writer:
        pass
    writer.put(make_record())
    assert writer.lost == 1
    assert await stored(database) == []


async def is_in_trouble(caplog: pytest.LogCaptureFixture, streak: int) -> bool:
    return log_lines(caplog).count(IN_TROUBLE) == streak


async def test_rows_wait_for_a_lock_and_trouble_is_told_of_once_per_streak(
    database: Database, database_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AuditWriter(database, batch_interval_s=0.01, retry_interval_s=0.01) as writer:
        for streak in (1, 2):
            with locked(database_file):
                writer.put(make_record())
                # A try and some more: each waits 0.05 s for the lock.
                await eventually(partial(is_in_trouble, caplog, streak))
                await asyncio.sleep(0.4)
                assert len(await stored(database)) == streak - 1
            await eventually_stored(database, streak)
        assert writer.lost == 0
    assert log_lines(caplog) == [IN_TROUBLE, RECOVERED] * 2


async def test_a_full_batch_in_trouble_is_not_tried_without_pause(
    database: Database, database_file: Path
) -> None:
    async with AuditWriter(database, retry_interval_s=FOR_EVER_S) as writer:
        await past_the_first_sweep(writer, database)
        with locked(database_file), inserts(database) as tries:
            put_all(writer, make_records(200))
            for row in make_records(50):
                await asyncio.sleep(0.01)
                writer.put(row)
            assert len(tries) == 1


async def test_a_database_that_stays_locked_does_not_keep_the_server_from_ending(
    database: Database, database_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(database_file):
        async with asyncio.timeout(5):
            async with AuditWriter(database, retry_interval_s=FOR_EVER_S) as writer:
                put_all(writer, make_records(500))
                await eventually_logged(caplog, IN_TROUBLE)
    assert writer.lost == 500
    assert log_lines(caplog) == [IN_TROUBLE, LOSING]


async def test_the_log_line_names_the_trouble_and_nothing_of_the_row(
    database: Database, database_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AuditWriter(database) as writer:
        await past_the_first_sweep(writer, database)
        with locked(database_file):
            writer.put(make_record("marked"))
            await eventually_logged(caplog, IN_TROUBLE)
    assert "can't be written: its rows wait (SQLITE_BUSY)" in caplog.text
    assert "marked" not in caplog.text


async def test_a_table_that_is_missing_is_trouble_that_can_end(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with AuditWriter(database, retry_interval_s=0.01) as writer:
        await execute(database, "ALTER TABLE audit_log RENAME TO elsewhere")
        writer.put(make_record())
        await eventually_logged(caplog, IN_TROUBLE)
        await execute(database, "ALTER TABLE elsewhere RENAME TO audit_log")
        await eventually_stored(database, 1)


async def execute(database: Database, statement: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text(statement))


def without_a_time_zone() -> MadeRecord:
    return make_record(started_at=datetime(2026, 1, 1))  # noqa: DTZ001 - the fault


def without_an_endpoint() -> MadeRecord:
    row = make_record()
    row.row.endpoint = None  # type: ignore[assignment]
    return row


@pytest.mark.parametrize("faulty", [without_a_time_zone(), without_an_endpoint()])
async def test_a_faulty_row_does_not_hold_up_those_after_it(
    database: Database, caplog: pytest.LogCaptureFixture, faulty: MadeRecord
) -> None:
    async with AuditWriter(database, batch_interval_s=0.0) as writer:
        writer.put(faulty)
        await eventually_logged(caplog, LOSING)
        writer.put(make_record("good"))
        await eventually_stored(database, 1)
    assert writer.lost == 1
    assert log_lines(caplog) == [LOSING]


async def test_losses_are_told_of_once_per_streak(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with AuditWriter(database, batch_interval_s=0.0) as writer:

        async def lose(count: int) -> None:
            async def is_lost() -> bool:
                return writer.lost == count

            writer.put(without_a_time_zone())
            await eventually(is_lost)
            await asyncio.sleep(0.01)

        await lose(1)
        await lose(2)
        assert log_lines(caplog) == [LOSING]
        writer.put(make_record())
        await eventually_stored(database, 1)
        await lose(3)
    assert log_lines(caplog) == [LOSING, LOSING]


async def put_directly(database: Database, *rows: MadeRecord) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, rows)


async def test_old_rows_are_gone_after_the_start(database: Database) -> None:
    now = datetime.now(UTC)
    kept, dropped = now - timedelta(days=6.9), now - timedelta(days=7.1)
    await put_directly(database, make_record("kept", kept), make_record("dropped", dropped))
    async with AuditWriter(database, retention_days=7):
        pass
    assert await stored_ids(database) == ["kept"]


async def test_rows_are_kept_for_thirty_days_by_default(database: Database) -> None:
    now = datetime.now(UTC)
    kept, dropped = now - timedelta(days=29.9), now - timedelta(days=30.1)
    await put_directly(database, make_record("kept", kept), make_record("dropped", dropped))
    async with AuditWriter(database):
        pass
    assert await stored_ids(database) == ["kept"]


async def test_rows_that_grow_old_go_while_the_server_runs(database: Database) -> None:
    today = datetime.now(UTC)
    days = [today]

    async def is_empty() -> bool:
        return not await stored(database)

    async with AuditWriter(
        database, now=lambda: days[0], batch_interval_s=0.01, sweep_interval_s=0.02
    ) as writer:
        writer.put(make_record("old", today))
        await eventually_stored(database, 1)
        days[0] += timedelta(days=31)
        await eventually(is_empty)


async def test_sweeps_come_at_their_time_and_not_with_every_batch(database: Database) -> None:
    sweeps: list[datetime] = []

    def now() -> datetime:
        sweeps.append(datetime.now(UTC))
        return sweeps[-1]

    async with AuditWriter(database, now=now, batch_interval_s=0.01) as writer:
        for count in (1, 2, 3):
            writer.put(make_record())
            await eventually_stored(database, count)
    assert len(sweeps) == 1


async def test_a_sweep_that_meets_a_lock_is_no_end(
    database: Database, database_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(database_file):
        async with AuditWriter(database, retry_interval_s=0.01) as writer:
            await eventually_logged(caplog, IN_TROUBLE)
        assert log_lines(caplog) == [IN_TROUBLE]
    assert writer.lost == 0


async def test_a_retention_of_ages_is_no_error(database: Database) -> None:
    await put_directly(database, make_record(started_at=datetime(1990, 1, 1, tzinfo=UTC)))
    async with AuditWriter(database, retention_days=1e12) as writer:
        writer.put(make_record())
    assert len(await stored(database)) == 2


request_of_the_task = ContextVar[str]("request_of_the_task")


async def test_the_writer_works_in_no_request_s_context(database: Database) -> None:
    seen: list[str] = []

    def now() -> datetime:
        seen.append(request_of_the_task.get("none"))
        return datetime.now(UTC)

    request_of_the_task.set("the one that started the writer")
    async with AuditWriter(database, now=now):
        pass
    assert seen == ["none"]


async def test_no_task_is_left_behind(database: Database) -> None:
    before = asyncio.all_tasks()
    async with AuditWriter(database) as writer:
        writer.put(make_record())
    assert asyncio.all_tasks() == before


async def test_leaving_while_a_batch_is_written_does_not_wait_for_another(
    database: Database,
) -> None:
    writer = AuditWriter(database, batch_interval_s=0.0)
    async with asyncio.timeout(10):
        await writer.__aenter__()
        async with writer.writing:
            writer.put(make_record())
            await asyncio.sleep(0.1)  # the batch waits for the lock
            leaving = asyncio.create_task(writer.__aexit__(None, None, None))
            await asyncio.sleep(0)
        await leaving
    assert len(await stored(database)) == 1
