"""Stored prompts make room: for a model that would not fit beside them, and they come back when there is room again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from mlx_manager.mlx_server.pool.ledger import Ledger
from mlx_manager.mlx_server.pool.resident import Resident

# Engines tell what they hold once a second.
LOOK_S = 0.05
MOST_LOOKS = 100


def stored_bytes(residents: Iterable[Resident]) -> int:
    """Return what is set aside for stored prompts in engines that could be told to give it up."""
    return sum(one.reservation.prefix_cache_bytes for one in residents if one.is_running)


async def give_up(residents: Iterable[Resident], wanted_bytes: int) -> None:
    """Take `wanted_bytes` from stored prompts, of the first ones first; returns when they are given back, or late."""
    changed = list[Resident]()
    for resident in residents:
        taken_bytes = min(stored_bytes([resident]), wanted_bytes)
        if taken_bytes > 0:
            _change(resident, -taken_bytes)
            changed.append(resident)
            wanted_bytes -= taken_bytes
    for _ in range(MOST_LOOKS):
        if all(map(_has_given_up, changed)):
            return
        await asyncio.sleep(LOOK_S)


def share_out(residents: Iterable[Resident], ledger: Ledger, free_bytes: int) -> None:
    """Let stored prompts have what is free and they should have, of the first ones first."""
    for resident in residents:
        missing_bytes = ledger.wanted_bytes(resident.files) - stored_bytes([resident])
        more_bytes = min(missing_bytes, free_bytes)
        if more_bytes > 0 and resident.is_running:
            _change(resident, more_bytes)
            free_bytes -= more_bytes


def _change(resident: Resident, by_bytes: int) -> None:
    reserved = resident.reservation
    resident.reservation = changed = replace(
        reserved,
        prefix_cache_bytes=reserved.prefix_cache_bytes + by_bytes,
        shared_bytes=reserved.shared_bytes + by_bytes,
    )
    assert resident.engine is not None
    resident.engine.share(changed.prefix_cache_bytes, changed.shared_bytes)


def _has_given_up(resident: Resident) -> bool:
    """Whether its engine keeps no more than it may, as far as it has told; a dead one keeps nothing."""
    vitals = resident.engine.vitals if resident.engine and resident.is_running else None
    return vitals is None or vitals.prefix_cache_bytes <= resident.reservation.prefix_cache_bytes
