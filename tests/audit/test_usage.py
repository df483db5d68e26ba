"""What the audit log adds up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.search import EVERYTHING, RequestFilter
from mlx_manager.mlx_server.audit.usage import MOST_SUMS, UsageBy, UsageSum, usage_by
from tests.audit.rows import make_record, with_changes

# Half an hour before midnight where it is two hours later.
LATE = datetime(2026, 11, 26, 21, 30, tzinfo=UTC)


async def fill(database: Database) -> None:
    made = [
        ("first", LATE, "a", "laptop", "s-1", "completed", (100, 40, 7)),
        ("second", LATE + timedelta(hours=3), "a", "agent", "s-1", "failed", (10, 0, 1)),
        ("third", LATE + timedelta(hours=4), "b", "laptop", None, "completed", (1000, 500, 20)),
        ("refused", LATE, None, None, None, "failed", (None, None, None)),
    ]
    records = [
        with_changes(
            make_record(request_id, at),
            model=model,
            key_id=key,
            session_id=session,
            outcome=outcome,
            **dict(zip(("input_tokens", "cached_tokens", "output_tokens"), tokens, strict=True)),
        )
        for request_id, at, model, key, session, outcome, tokens in made
    ]
    async with database.sessions.begin() as session:
        await service.record(session, records)


async def sums(
    database: Database, by: UsageBy, wanted: RequestFilter = EVERYTHING
) -> list[UsageSum]:
    async with database.transaction() as session:
        return list(await usage_by(session, by, wanted))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("model", [("b", 1, 0, 1000, 500, 20), ("a", 2, 1, 110, 40, 8), (None, 1, 1, 0, 0, 0)]),
        (
            "key",
            [
                ("laptop", 2, 0, 1100, 540, 27),
                ("agent", 1, 1, 10, 0, 1),
                (None, 1, 1, 0, 0, 0),
            ],
        ),
        ("session", [(None, 2, 1, 1000, 500, 20), ("s-1", 2, 1, 110, 40, 8)]),
        ("endpoint", [("/v1/chat/completions", 4, 2, 1110, 540, 28)]),
        ("day", [("2026-11-27", 2, 1, 1010, 500, 21), ("2026-11-26", 2, 1, 100, 40, 7)]),
    ],
)
async def test_requests_and_tokens_are_added_up(
    database: Database, by: UsageBy, expected: list[tuple[str | None, int, int, int, int, int]]
) -> None:
    await fill(database)
    assert await sums(database, by) == [UsageSum(*one) for one in expected]


async def test_only_what_matches_is_added_up(database: Database) -> None:
    await fill(database)
    wanted = RequestFilter(key_id="laptop", since=LATE + timedelta(hours=1))
    assert await sums(database, "model", wanted) == [UsageSum("b", 1, 0, 1000, 500, 20)]
    wanted = RequestFilter(session_id="s-1", outcome="failed")
    assert await sums(database, "key", wanted) == [UsageSum("agent", 1, 1, 10, 0, 1)]
    assert await sums(database, "day", RequestFilter(model="nobody's")) == []


async def test_there_are_no_more_sums_than_a_page_can_show(database: Database) -> None:
    records = [
        with_changes(make_record(str(number)), session_id=f"s-{number}", output_tokens=number)
        for number in range(MOST_SUMS + 5)
    ]
    async with database.sessions.begin() as session:
        await service.record(session, records)
    found = await sums(database, "session")
    assert len(found) == MOST_SUMS
    assert (found[0].value, found[-1].value) == (f"s-{MOST_SUMS + 4}", "s-5")
