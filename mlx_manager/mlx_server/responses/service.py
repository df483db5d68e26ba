"""Keep, find and thin out stored responses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.mlx_server.responses.tables import StoredResponse as Row
from mlx_manager.wire.openai.responses.objects import UNFINISHED

_IS_UNFINISHED = Row.status.in_(UNFINISHED)


async def find(session: AsyncSession, response_id: str, key_id: str | None) -> Row | None:
    """Return a response that `key_id` may ask for."""
    mine = Row.key_id.is_not_distinct_from(key_id)
    return await session.scalar(select(Row).where(Row.id == response_id, mine))


async def events(
    session: AsyncSession, response_id: str, key_id: str | None
) -> tuple[bytes | None] | None:
    """Return the stored events of a response that `key_id` may ask for, if it has any; None without such a response."""
    mine = Row.key_id.is_not_distinct_from(key_id)
    found = await session.execute(select(Row.events).where(Row.id == response_id, mine))
    row = found.one_or_none()
    return None if row is None else (row.events,)


async def chain(session: AsyncSession, response_id: str, key_id: str | None) -> Sequence[Row]:
    """Return a response and those before it that are there, the first one first."""
    mine = Row.key_id.is_not_distinct_from(key_id)
    last = (
        select(Row.id, Row.previous_id, literal(0).label("steps"))
        .where(Row.id == response_id, mine)
        .cte("chain", recursive=True)
    )
    before = select(Row.id, Row.previous_id, last.c.steps + 1).where(mine)
    all_of_it = last.union_all(before.join(last, Row.id == last.c.previous_id))
    rows = select(Row).join(all_of_it, all_of_it.c.id == Row.id)
    return (await session.scalars(rows.order_by(all_of_it.c.steps.desc()))).all()


async def exists(session: AsyncSession, response_id: str) -> bool:
    """Say whether there is a response of this id, whoever may ask for it."""
    return await session.scalar(select(literal(1)).where(Row.id == response_id)) is not None


async def remove(session: AsyncSession, response_id: str, key_id: str | None) -> int | None:
    """Forget a response that `key_id` may ask for, and return the bytes that it took; None without one."""
    mine = Row.key_id.is_not_distinct_from(key_id)
    gone = delete(Row).where(Row.id == response_id, mine).returning(Row.size_bytes)
    return await session.scalar(gone)


async def remove_older_than(session: AsyncSession, moment: datetime) -> None:
    """Forget the responses that were created before `moment`."""
    await session.execute(delete(Row).where(Row.created_at < moment))


async def remove_oldest(session: AsyncSession, least_bytes: int, newest_id: str) -> int:
    """Forget the oldest finished responses until `least_bytes` are free, but not `newest_id`; return how many are."""
    sizes = select(Row.id, Row.size_bytes).where(~_IS_UNFINISHED, Row.id != newest_id)
    freed_bytes = 0
    for row in (await session.execute(sizes.order_by(Row.created_at))).all():
        if freed_bytes >= least_bytes:
            break
        await session.execute(delete(Row).where(Row.id == row.id))
        freed_bytes += row.size_bytes
    return freed_bytes


async def total_bytes(session: AsyncSession) -> int:
    """Return what all of them take."""
    return await session.scalar(select(func.sum(Row.size_bytes))) or 0


async def unfinished_of_others(session: AsyncSession, instance: str) -> Sequence[Row]:
    """Return the responses that another server works on, or worked on when it ended."""
    others = _IS_UNFINISHED & Row.instance.is_distinct_from(instance)
    return (await session.scalars(select(Row).where(others))).all()


async def keep_unfinished(session: AsyncSession, instance: str, now: datetime) -> None:
    """Say that `instance` still works on its unfinished responses."""
    mine = _IS_UNFINISHED & (Row.instance == instance)
    await session.execute(update(Row).where(mine).values(seen_at=now))
