"""Who has how much of the memory that models may take together, and what is set aside for whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import Need
from mlx_manager.mlx_server.workers.process import EngineProcess

NO_NEED = Need()


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is set aside for a model: what it needs, and what its prefix cache may grow to.

    `shared_bytes` are for keys and values of all its requests, to which stored prompts give way: what is set aside for
    both, and what was left of the budget.
    """

    need: Need = NO_NEED
    prefix_cache_bytes: int = 0
    shared_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.need.total_bytes + self.prefix_cache_bytes

    def corrected(self, weights_bytes: int) -> Reservation:
        """Return it with the weights as they are, once that is known."""
        return replace(self, need=replace(self.need, weights_bytes=weights_bytes))

    @property
    def entries(self) -> Mapping[str, int]:
        """Bytes by what they are for."""
        return {
            "weights": self.need.weights_bytes,
            "kv": self.need.kv_bytes,
            "prefix_cache": self.prefix_cache_bytes,
            "head_room": self.need.head_room_bytes,
        }


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rules of the books: `budget_bytes` for all, what a model needs, and how large prefix caches are to be."""

    budget_bytes: int = sys.maxsize
    appraise: Callable[[ModelFiles], Need] = lambda files: NO_NEED
    prefix_cache_bytes: int = 0

    def wanted_bytes(self, files: ModelFiles) -> int:
        """Return what a model's stored prompts are to have where there is room; 0: it stores none."""
        if files.kind != "chat":
            return 0
        own = files.settings.prefix_cache_mib
        return self.prefix_cache_bytes if own is None else own * 2**20

    def reserve(self, files: ModelFiles, need: Need, free_bytes: int) -> Reservation:
        """Return what to set aside for a model whose need fits: its prefix cache gets of the rest what it may have."""
        left_bytes = max(free_bytes - need.total_bytes, 0)
        granted_bytes = min(self.wanted_bytes(files), left_bytes)
        return Reservation(need, granted_bytes, need.kv_bytes + left_bytes)


def held_bytes(engine: EngineProcess | None) -> Mapping[str, int]:
    """Return what an engine holds by what it is, each byte once; empty until it has told, and when it is dead."""
    if engine is None or not engine.is_alive or engine.ready is None or engine.vitals is None:
        return {}
    vitals = engine.vitals
    held = {"weights": engine.ready.weights_bytes}
    if vitals.kv_bytes is not None:
        held["kv"] = vitals.kv_bytes
    held["prefix_cache"] = vitals.prefix_cache_bytes
    held["buffers"] = max(vitals.active_bytes - sum(held.values()), 0) + vitals.pooled_bytes
    return held
