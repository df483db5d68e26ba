"""Wait for an event, but not for ever."""

from __future__ import annotations

import asyncio


async def happens(event: asyncio.Event, within_s: float | None) -> bool:
    """Wait for `event` and say whether it came in time; None waits as long as it takes."""
    try:
        async with asyncio.timeout(None if within_s is None else max(within_s, 0.0)):
            await event.wait()
    except TimeoutError:
        return False
    return True
