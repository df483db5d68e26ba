"""Write, read and thin out the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.mlx_server.audit.tables import AuditRow

_WRITTEN = tuple(column.key for column in AuditRow.__table__.columns if not column.primary_key)


async def record(session: AsyncSession, rows: Sequence[AuditRow]) -> None:
    """Add `rows`, at least one, in a single statement."""
    values = [{name: getattr(row, name) for name in _WRITTEN} for row in rows]
    # With the None left out, as is usual, rows of unlike shapes would need a statement each.
    await session.execute(insert(AuditRow), values, execution_options={"render_nulls": True})


async def recent(
    session: AsyncSession, limit: int, before: int | None = None
) -> Sequence[AuditRow]:
    """Return the rows written last, newest first; `before` is the last `id` of the page above."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRow.id < before)
    return (await session.scalars(query)).all()


async def delete_older_than(session: AsyncSession, moment: datetime) -> None:
    """Forget the requests that started before `moment`."""
    await session.execute(delete(AuditRow).where(AuditRow.started_at < moment))
