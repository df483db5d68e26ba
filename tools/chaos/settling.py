"""Look until something has come to rest, but not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Seen = TypeVar("Seen")
WITHIN_S = 15.0


async def settled(look: Callable[[], Awaitable[Seen]], is_settled: Callable[[Seen], bool]) -> Seen:
    """Return what is seen once it is settled, or what is still seen after some time."""
    end_s = time.monotonic() + WITHIN_S
    while True:
        seen = await look()
        if is_settled(seen) or time.monotonic() > end_s:
            return seen
        await asyncio.sleep(0.25)
