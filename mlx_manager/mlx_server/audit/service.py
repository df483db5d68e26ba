"""Write and thin out the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.mlx_server.audit.instance import Instance
from mlx_manager.mlx_server.audit.tables import AuditRow

# With the None left out, as is usual, rows of unlike shapes would need a statement each.
_ALIKE = {"render_nulls": True}


class Record(Protocol):
    """What is to be written of a request: an `Entry`. `row_id` is that of the row it has already."""

    row_id: int | None

    def values(self) -> dict[str, object]:
        """Return the row's columns by name."""
        ...


async def record(session: AsyncSession, records: Sequence[Record]) -> None:
    """Write `records` as they ended: new rows in one statement, and those that are there in another."""
    new = [record.values() for record in records if record.row_id is None]
    known = [record.values() | {"id": record.row_id} for record in records if record.row_id]
    if new:
        await (await session.connection()).execute(_INSERT, new)
    if known:
        await session.execute(update(AuditRow), known)


async def record_running(
    session: AsyncSession, records: Sequence[Record], instance: Instance, now: datetime
) -> Sequence[int]:
    """Add a row for each of `records`, at least one, which `instance` is answering; return their ids."""
    owner = {"instance": str(instance), "seen_at": now}
    ids = await session.scalars(
        insert(AuditRow).returning(AuditRow.id, sort_by_parameter_order=True),
        [record.values() | owner for record in records],
        execution_options=_ALIKE,
    )
    return ids.all()


async def keep_running(session: AsyncSession, instance: Instance, now: datetime) -> None:
    """Say that `instance` is still there to answer its running requests."""
    mine = (AuditRow.outcome == "running") & (AuditRow.instance == str(instance))
    await session.execute(update(AuditRow).where(mine).values(seen_at=now))


async def close_abandoned(session: AsyncSession, instance: Instance, before: datetime) -> int:
    """Close as interrupted what runs in no process any more; return how many others still run.

    A process is gone when this machine knows so, or when it wasn't seen since `before`. What it was
    last seen at is the best that is known of the end.
    """
    running = select(AuditRow.id, AuditRow.started_at, AuditRow.seen_at, AuditRow.instance)
    others = [
        row
        for row in await session.execute(running.where(AuditRow.outcome == "running"))
        if row.instance != str(instance)
    ]
    ends = [
        {"row": row.id, "duration": max((row.seen_at - row.started_at).total_seconds(), 0.0)}
        for row in others
        if row.seen_at < before or instance.sees_end_of(row.instance)
    ]
    if ends:
        await (await session.connection()).execute(_INTERRUPT, ends)
    return len(others) - len(ends)


async def delete_older_than(session: AsyncSession, moment: datetime) -> None:
    """Forget the requests that started before `moment`."""
    await session.execute(delete(AuditRow).where(AuditRow.started_at < moment))


_LOG = AuditRow.__table__
# For the connection and not for the session, which costs a batch half as much again.
_INSERT = insert(AuditRow)
# Only while it runs: a process that was thought dead may have come to the end of it just now.
_INTERRUPT = (
    update(AuditRow)
    .where(_LOG.c.id == bindparam("row"), _LOG.c.outcome == "running")
    .values(outcome="interrupted", duration_s=bindparam("duration"))
)
