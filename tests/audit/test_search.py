"""Search, count and export: each filter alone, pages that meet, and files that a spreadsheet can be trusted with."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.export import COLUMNS, to_csv, to_jsonl
from mlx_manager.mlx_server.audit.search import (
    EVERYTHING,
    EXPORT_PAGE,
    RequestFilter,
    count_outcomes,
    search,
    search_after,
    search_all,
)
from tests.audit.rows import make_record, make_records, with_changes

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def fill(database: Database) -> None:
    """A plain request and, for each filter, one that differs in what it asks for."""
    unlike: list[dict[str, object]] = [
        {"request_id": "late", "started_at": NOON + HOUR},
        {"request_id": "early", "started_at": NOON - HOUR},
        {"request_id": "model", "model": "other"},
        {"request_id": "endpoint", "endpoint": "/v1/completions"},
        {"request_id": "outcome", "outcome": "cancelled"},
        {"request_id": "status", "status": 404},
        {"request_id": "none", "status": None, "duration_s": None},
        {"request_id": "code", "error_code": "overloaded"},
        {"request_id": "trace", "trace_id": "b" * 32},
        {"request_id": "key", "key_id": "key"},
        {"request_id": "client", "client_address": "::1"},
        {"request_id": "slow", "duration_s": 60.0},
    ]
    records = [with_changes(make_record("plain", NOON), **changes) for changes in unlike]
    async with database.sessions.begin() as session:
        await service.record(session, records)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RequestFilter(since=NOON + HOUR), {"late"}),
        (RequestFilter(until=NOON), {"early"}),
        (RequestFilter(model="other"), {"model"}),
        (RequestFilter(endpoint="/v1/completions"), {"endpoint"}),
        (RequestFilter(outcome="cancelled"), {"outcome"}),
        (RequestFilter(statuses=(400, 500)), {"status"}),
        (RequestFilter(statuses=(404, 405)), {"status"}),
        (RequestFilter(statuses=(405, 500)), set()),
        (RequestFilter(error_code="overloaded"), {"code"}),
        (RequestFilter(request_id="code"), {"code"}),
        (RequestFilter(trace_id="b" * 32), {"trace"}),
        (RequestFilter(key_id="key"), {"key"}),
        (RequestFilter(client_address="::1"), {"client"}),
        (RequestFilter(min_duration_s=60), {"slow"}),
        (RequestFilter(ids=(1, 2)), {"late", "early"}),
        (RequestFilter(model="other", statuses=(404, 405)), set()),
    ],
)
async def test_each_filter_finds_what_it_says(
    database: Database, wanted: RequestFilter, found: set[str]
) -> None:
    await fill(database)
    async with database.transaction() as session:
        rows = await search(session, wanted, 100)
        counts = await count_outcomes(session, wanted)
    assert {row.request_id for row in rows} == found
    assert sum(counts.values()) == len(found)


async def test_outcomes_are_counted(database: Database) -> None:
    await fill(database)
    async with database.transaction() as session:
        assert await count_outcomes(session, EVERYTHING) == {"failed": 11, "cancelled": 1}


async def test_pages_meet_without_a_gap_while_rows_come(database: Database) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, make_records(5))
        first = await search(session, EVERYTHING, 2)
        await service.record(session, [make_record("new")])
        second = await search(session, EVERYTHING, 2, before=first[-1].id)
    assert [row.request_id for row in [*first, *second]] == ["4", "3", "2", "1"]


async def test_news_come_in_pages_that_skip_nothing(database: Database) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, make_records(5))
        first = await search_after(session, EVERYTHING, 2, after=1)
        second = await search_after(session, EVERYTHING, 2, after=first[0].id)
        third = await search_after(session, EVERYTHING, 2, after=second[0].id)
    assert [row.request_id for row in first] == ["2", "1"]
    assert [row.request_id for row in second] == ["4", "3"]
    assert third == []


async def test_an_export_has_every_row_of_many_pages_and_only_those_that_match(
    database: Database,
) -> None:
    count = 2 * EXPORT_PAGE + 1
    async with database.sessions.begin() as session:
        await service.record(session, make_records(count))
        await service.record(session, [with_changes(make_record("other"), model="other")])
    pages = [page async for page in to_jsonl(search_all(database, RequestFilter(model="asked")))]
    assert len(pages) == 3, "it comes in pieces"
    rows = [json.loads(line) for line in b"".join(pages).splitlines()]
    assert [row["request_id"] for row in rows] == [str(n) for n in reversed(range(count))]
    assert set(rows[0]) == set(COLUMNS)


@pytest.mark.parametrize("model", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
async def test_no_cell_of_a_csv_file_is_a_formula(database: Database, model: str) -> None:
    async with database.sessions.begin() as session:
        await service.record(session, [with_changes(make_record(), model=model)])
    content = b"".join([page async for page in to_csv(search_all(database, EVERYTHING))])
    [row] = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert row["model"] == f"'{model}"


async def test_a_csv_file_reads_back_as_it_was(database: Database) -> None:
    awkward = 'comma, "quote"\nline, 模型'
    async with database.sessions.begin() as session:
        await service.record(session, [with_changes(make_record(), model=awkward)])
    content = b"".join([page async for page in to_csv(search_all(database, EVERYTHING))])
    [row] = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert tuple(row) == COLUMNS
    assert (row["model"], row["stream"], row["key_id"]) == (awkward, "True", "")
    assert (row["duration_s"], row["output_tokens"]) == ("1.5", "5")


async def test_an_empty_log_is_a_file_with_a_head(database: Database) -> None:
    assert [page async for page in to_jsonl(search_all(database, EVERYTHING))] == []
    [head] = [page async for page in to_csv(search_all(database, EVERYTHING))]
    assert head.decode().strip().split(",") == list(COLUMNS)
