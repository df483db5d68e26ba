"""Keep limits in the database."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.chat.request import Operation
from mlx_manager.mlx_server.time_limits.tables import StoredSetting

_NAMES: Mapping[Operation, str] = {
    "chat": "timeouts.chat_s",
    "text_completion": "timeouts.completions_s",
    "embeddings": "timeouts.embeddings_s",
}


async def stored_limits(session: AsyncSession) -> dict[Operation, float]:
    """Return the limits that were changed, in seconds."""
    query = select(StoredSetting).where(StoredSetting.name.in_(_NAMES.values()))
    found = {row.name: row.value for row in await session.scalars(query)}
    return {
        operation: msgspec.json.decode(found[name], type=float)
        for operation, name in _NAMES.items()
        if name in found
    }


async def store_limit(session: AsyncSession, operation: Operation, seconds: float | None) -> None:
    """Keep a limit, or with None forget it."""
    name = _NAMES[operation]
    if seconds is None:
        await session.execute(delete(StoredSetting).where(StoredSetting.name == name))
        return
    await session.merge(StoredSetting(name=name, value=msgspec.json.encode(seconds).decode()))
    await session.flush()
