"""Stored prompts make way for a model that would not fit beside them, and come back when there is room again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from mlx_manager.mlx_server.pool.ledger import Ledger
from mlx_manager.mlx_server.pool.resident import Resident

# Engines tell what they hold once a second.
LOOK_S = 0.05


def givable_bytes(residents: Iterable[Resident]) -> int:
    """Return how much less models would count for without their stored prompts."""
    return sum(map(_givable_bytes, residents))


async def make_way(
    residents: Iterable[Resident], wanted_bytes: int, patience_s: float
) -> list[Resident]:
    """Take `wanted_bytes` from stored prompts, of the first ones first, and wait until engines have given them back.

    Returns those whose engines have not done so in `patience_s`.
    """
    end_s = time.monotonic() + patience_s
    asked = list[tuple[Resident, int]]()
    for resident in residents:
        taken_bytes = min(_givable_bytes(resident), wanted_bytes)
        if taken_bytes > 0:
            target_bytes = resident.committed_bytes - taken_bytes
            asked.append((resident, target_bytes))
            resident.share(resident.standing.prompts_bytes_within(target_bytes))
            tell_room(resident)
            wanted_bytes -= taken_bytes
    while late := [one for one, target_bytes in asked if one.committed_bytes > target_bytes]:
        if time.monotonic() > end_s:
            break
        await asyncio.sleep(LOOK_S)
    return late


def come_back(residents: Iterable[Resident], ledger: Ledger, free_bytes: int) -> None:
    """Let stored prompts have what is free and they should have, of the first ones first; their engines aren't told."""
    for resident in residents:
        room_bytes = resident.reservation.prefix_cache_bytes
        more_bytes = min(ledger.wanted_bytes(resident.files) - room_bytes, free_bytes)
        if more_bytes > 0:
            resident.share(room_bytes + more_bytes)
            free_bytes -= more_bytes


def tell_room(resident: Resident) -> None:
    """Tell the engine of a model what its reservation says: it may have changed since the engine was started."""
    if resident.engine is not None and resident.is_running:
        reserved = resident.reservation
        resident.engine.set_room(reserved.prefix_cache_bytes, reserved.shared_bytes)


def _givable_bytes(resident: Resident) -> int:
    return resident.committed_bytes - resident.standing.without_prompts_bytes
