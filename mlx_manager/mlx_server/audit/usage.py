"""Who has used how much: requests and tokens of the audit log, added up by what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Integer, SQLColumnExpression, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.mlx_server.audit.search import RequestFilter, conditions
from mlx_manager.mlx_server.audit.tables import AuditRow

UsageBy = Literal["model", "key", "session", "endpoint", "day"]
MOST_SUMS = 1000
_COLUMNS = {
    "model": AuditRow.model,
    "key": AuditRow.key_id,
    "session": AuditRow.session_id,
    "endpoint": AuditRow.endpoint,
}


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What requests have used that have one `value` in common; None: those that have none. Days are of UTC.

    `input_tokens` are whole prompts; `cached_tokens` of them were not computed.
    """

    value: str | None
    requests: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


async def usage_by(session: AsyncSession, by: UsageBy, wanted: RequestFilter) -> Sequence[UsageSum]:
    """Return the sums of the requests that match, at most `MOST_SUMS`: most tokens first, days newest first."""
    key: SQLColumnExpression[Any] = _day(session) if by == "day" else _COLUMNS[by]
    tokens = (AuditRow.input_tokens, AuditRow.cached_tokens, AuditRow.output_tokens)
    sums = [func.coalesce(func.sum(column), 0) for column in tokens]
    failed = func.sum(cast(AuditRow.outcome == "failed", Integer))
    order = key.desc() if by == "day" else (sums[0] + sums[2]).desc()
    query = select(key, func.count(), failed, *sums).where(*conditions(wanted)).group_by(key)
    rows = await session.execute(query.order_by(order, key).limit(MOST_SUMS))
    return [UsageSum(value if value is None else str(value), *rest) for value, *rest in rows]


def _day(session: AsyncSession) -> ColumnElement[Any]:
    """The day of a request's arrival, in UTC, as which SQLite keeps all times."""
    if session.get_bind().dialect.name == "sqlite":
        return func.date(AuditRow.started_at)
    return func.date(func.timezone("UTC", AuditRow.started_at))
