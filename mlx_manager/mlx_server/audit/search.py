"""Find requests in the audit log, in pages that meet without a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.database import Database
from mlx_manager.mlx_server.audit.tables import AuditRow, Outcome

EXPORT_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """What requests must all be; None asks for nothing.

    `since` is the first moment of arrival and `until` the first that is too late; `statuses` likewise the lowest and
    the first too high. `text` is looked for in ids, model and error code. `ids` are the rows' own, for another look at
    some that were still running.
    """

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    endpoint: str | None = None
    outcome: Outcome | None = None
    statuses: tuple[int, int] | None = None
    error_code: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    client_address: str | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    text: str | None = None
    ids: tuple[int, ...] = ()


EVERYTHING = RequestFilter()
_EQUAL = {
    "model": AuditRow.model,
    "endpoint": AuditRow.endpoint,
    "outcome": AuditRow.outcome,
    "error_code": AuditRow.error_code,
    "request_id": AuditRow.request_id,
    "trace_id": AuditRow.trace_id,
    "key_id": AuditRow.key_id,
    "session_id": AuditRow.session_id,
    "client_address": AuditRow.client_address,
}

_TEXTS = (AuditRow.request_id, AuditRow.trace_id, AuditRow.model, AuditRow.error_code)


async def search(
    session: AsyncSession, wanted: RequestFilter, limit: int, before: int | None = None
) -> Sequence[AuditRow]:
    """Return the rows written last, newest first; `before` is the last `id` of the page above."""
    query = select(AuditRow).where(*conditions(wanted)).order_by(AuditRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRow.id < before)
    return (await session.scalars(query)).all()


async def search_after(
    session: AsyncSession, wanted: RequestFilter, limit: int, after: int
) -> Sequence[AuditRow]:
    """Return the rows written next after the row `after`, newest first; none is skipped when there are more."""
    query = select(AuditRow).where(*conditions(wanted), AuditRow.id > after)
    rows = (await session.scalars(query.order_by(AuditRow.id).limit(limit))).all()
    return rows[::-1]


async def count_outcomes(session: AsyncSession, wanted: RequestFilter) -> dict[Outcome, int]:
    """Return how many requests came to which end; those that none came to are left out."""
    query = select(AuditRow.outcome, func.count()).where(*conditions(wanted))
    counted = await session.execute(query.group_by(AuditRow.outcome))
    return dict(counted.all())


async def search_all(
    database: Database, wanted: RequestFilter
) -> AsyncIterator[Sequence[AuditRow]]:
    """Yield every row, newest first, some at a time; no transaction is open while they are used."""
    before: int | None = None
    while True:
        async with database.transaction() as session:
            rows = await search(session, wanted, EXPORT_PAGE, before)
        if rows:
            yield rows
        if len(rows) < EXPORT_PAGE:
            return
        before = rows[-1].id


def conditions(wanted: RequestFilter) -> Iterator[ColumnElement[bool]]:
    """Yield what rows must all be."""
    for name, column in _EQUAL.items():
        value: Any = getattr(wanted, name)
        if value is not None:
            yield column == value
    yield from _bounds(wanted)
    if wanted.text:
        yield or_(*(column.icontains(wanted.text, autoescape=True) for column in _TEXTS))
    if wanted.ids:
        yield AuditRow.id.in_(wanted.ids)


def _bounds(wanted: RequestFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.since is not None:
        yield AuditRow.started_at >= wanted.since
    if wanted.until is not None:
        yield AuditRow.started_at < wanted.until
    if wanted.statuses is not None:
        yield AuditRow.status >= wanted.statuses[0]
        yield AuditRow.status < wanted.statuses[1]
    if wanted.min_duration_s is not None:
        yield AuditRow.duration_s >= wanted.min_duration_s
    if wanted.max_duration_s is not None:
        yield AuditRow.duration_s <= wanted.max_duration_s
