"""How much memory processes have resident."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the sum over those that are still there."""
    return sum(map(_of, processes))


def _of(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
