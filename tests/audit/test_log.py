"""The audit log while the server runs: rows before the end, and rows whose server is gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mlx_manager.chat.request import Origin
from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.instance import Instance, this_instance
from mlx_manager.mlx_server.audit.log import AuditLog
from mlx_manager.mlx_server.audit.tables import AuditRow
from tests.audit.rows import eventually, make_record, stored, with_changes

HERE = this_instance()


def origin(request_id: str = "1") -> Origin:
    return Origin(request_id, "/v1/chat/completions", "127.0.0.1")


async def outcomes(database: Database) -> list[str]:
    return [row.outcome for row in reversed(await stored(database))]


async def eventually_has(database: Database, *expected: str) -> None:
    async def has() -> bool:
        return await outcomes(database) == list(expected)

    await eventually(has)


async def test_a_request_that_takes_longer_has_one_row_before_and_after_its_end(
    database: Database,
) -> None:
    async with AuditLog(database, running_after_s=0.01) as log:
        entry = log.open(origin(), "a" * 32)
        entry.asked("model", True)
        await eventually_has(database, "running")
        [before] = await stored(database)
        assert (before.model, before.trace_id, before.duration_s) == ("model", "a" * 32, None)
        entry.status = 200
        log.close(entry)
        await eventually_has(database, "completed")
    [after] = await stored(database)
    assert after.id == before.id
    assert (after.duration_s or 0) > 0


async def test_a_quick_request_is_written_once(database: Database) -> None:
    async with AuditLog(database, running_after_s=60) as log:
        entry = log.open(origin(), None)
        entry.status = 200
        log.close(entry)
        log.close(entry)
    [row] = await stored(database)
    assert (row.outcome, row.instance) == ("completed", None)


async def test_requests_that_end_while_their_rows_are_written_have_one_each(
    database: Database,
) -> None:
    async with AuditLog(database, running_after_s=0.001) as log:
        for round_ in range(20):
            entries = [log.open(origin(f"{round_}-{number}"), None) for number in range(20)]
            for number, entry in enumerate(entries):
                await asyncio.sleep(0.001 if number % 7 == 0 else 0)
                entry.status = 200
                log.close(entry)
    rows = await stored(database)
    assert {row.outcome for row in rows} == {"completed"}
    assert len(rows) == len({row.request_id for row in rows}) == 400
    assert {row.instance is None for row in rows} == {True, False}, "both ways were taken"


async def test_two_requests_of_one_id_have_a_row_each(database: Database) -> None:
    async with AuditLog(database) as log:
        for entry in [log.open(origin("same"), None), log.open(origin("same"), None)]:
            log.close(entry)
    assert len(await stored(database)) == 2


async def test_what_runs_at_a_clean_stop_is_written_as_interrupted(database: Database) -> None:
    async with AuditLog(database, running_after_s=0.01) as log:
        log.open(origin("long"), None)
        await eventually_has(database, "running")
        short = log.open(origin("short"), None)
    log.close(short)
    assert await outcomes(database) == ["interrupted", "interrupted"]
    assert all(row.duration_s is not None for row in await stored(database))


async def test_a_log_without_requests_rests(database: Database) -> None:
    async with AuditLog(database, running_after_s=0.0) as log:
        entry = log.open(origin(), None)
        log.close(entry)
        await eventually_has(database, "cancelled")
        await asyncio.sleep(0.1)
        before_s = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before_s < 0.02


async def left_running(database: Database, instance: Instance, seen_at: datetime) -> None:
    """A row as a server leaves it that was answering when it was last seen."""
    started_at = seen_at - timedelta(seconds=7)
    record = with_changes(
        make_record("left", started_at), outcome="running", duration_s=None, status=None
    )
    async with database.sessions.begin() as session:
        await service.record_running(session, [record], instance, seen_at)


async def after_a_start(database: Database) -> AuditRow:
    async with AuditLog(database):
        await asyncio.sleep(0.2)
    [row] = await stored(database)
    return row


def pid_of_the_dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


async def test_what_a_dead_process_left_is_interrupted_when_it_was_last_seen(
    database: Database,
) -> None:
    dead = Instance(HERE.machine, pid_of_the_dead(), "x")
    await left_running(database, dead, datetime.now(UTC))
    row = await after_a_start(database)
    assert (row.outcome, row.duration_s, row.status) == ("interrupted", 7.0, None)


@pytest.fixture
def living() -> Iterator[Instance]:
    """An instance in another process, which goes on."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield Instance(HERE.machine, process.pid, "x")
        process.communicate(b"\n")


async def test_what_another_living_process_answers_is_left_alone(
    database: Database, living: Instance
) -> None:
    await left_running(database, living, datetime.now(UTC))
    assert (await after_a_start(database)).outcome == "running"


async def test_on_another_machine_only_time_tells(database: Database) -> None:
    elsewhere = Instance("elsewhere", pid_of_the_dead(), "x")
    await left_running(database, elsewhere, datetime.now(UTC))
    assert (await after_a_start(database)).outcome == "running"


async def test_what_was_not_seen_for_long_is_interrupted_wherever_it_ran(
    database: Database,
) -> None:
    elsewhere = Instance("elsewhere", 1, "x")
    await left_running(database, elsewhere, datetime.now(UTC) - timedelta(minutes=1))
    assert (await after_a_start(database)).outcome == "interrupted"


async def test_a_row_that_is_still_seen_at_the_start_is_looked_at_again(
    database: Database,
) -> None:
    await left_running(database, Instance("elsewhere", 1, "x"), datetime.now(UTC))
    async with AuditLog(database, lease_s=1.0, running_after_s=0.01):
        assert await outcomes(database) == ["running"]
        await eventually_has(database, "interrupted")


async def test_two_logs_at_once_keep_their_hands_off_each_others_requests(
    database: Database,
) -> None:
    """Each renews its lease: with one of a second both still run after two."""
    async with (
        AuditLog(database, lease_s=1.0, running_after_s=0.01) as first,
        AuditLog(database, lease_s=1.0, running_after_s=0.01) as second,
    ):
        entries = [(log, log.open(origin(), None)) for log in (first, second)]
        await eventually_has(database, "running", "running")
        await asyncio.sleep(2)
        assert await outcomes(database) == ["running", "running"]
        for log, entry in entries:
            entry.status = 200
            log.close(entry)
    assert await outcomes(database) == ["completed", "completed"]


async def test_the_end_of_a_request_that_was_thought_dead_wins(database: Database) -> None:
    async with AuditLog(database, running_after_s=0.01) as log:
        entry = log.open(origin(), None)
        await eventually_has(database, "running")
        async with database.sessions.begin() as session:
            later = datetime.now(UTC) + timedelta(hours=1)
            await service.close_abandoned(session, Instance("elsewhere", 1, "x"), later)
        assert await outcomes(database) == ["interrupted"]
        entry.status = 200
        log.close(entry)
        await eventually_has(database, "completed")
