"""Who has how much of the memory that models may take together, and what is set aside for whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.engine.messages import Ready
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import Need
from mlx_manager.mlx_server.workers.process import EngineProcess

NO_NEED = Need()


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is set aside for a model: what it needs, and what its prefix cache may grow to.

    Keys and values of its requests may take `extra_bytes` more, of what nobody has until another model needs it.
    """

    need: Need = NO_NEED
    prefix_cache_bytes: int = 0
    extra_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.need.total_bytes + self.prefix_cache_bytes

    @property
    def shared_bytes(self) -> int:
        """What keys and values of all its requests may take; stored prompts give way to them."""
        return self.need.kv_bytes + self.prefix_cache_bytes + self.extra_bytes

    def corrected(self, ready: Ready) -> Reservation:
        """Return it with the weights, and what keys and values cost, as they are: once that is known."""
        need = replace(self.need, weights_bytes=ready.weights_bytes).at(ready.kv_cost)
        return replace(self, need=need)

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
        return Reservation(need, granted_bytes)


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


@dataclass(frozen=True, slots=True)
class Standing:
    """What a model counts for: what is set aside for it, or what it `held` when its engine last told, if that is more.

    Its head room counts whether it is used or not. `promised_kv_bytes` is what keys and values of the requests that run
    may come to; they were let in with that.
    """

    reserved: Reservation
    held: Mapping[str, int]
    promised_kv_bytes: int = 0

    @classmethod
    def of(cls, reserved: Reservation, engine: EngineProcess | None) -> Standing:
        """Return that of a model with this engine."""
        held = held_bytes(engine)
        vitals = engine.vitals if held and engine else None
        return cls(reserved, held, vitals.promised_kv_bytes if vitals else 0)

    @property
    def counted_bytes(self) -> int:
        """All that it counts for."""
        set_aside = self.reserved.need.kv_bytes + self.reserved.prefix_cache_bytes
        in_use = self.held.get("kv", 0) + self.held.get("prefix_cache", 0)
        return self._fixed_bytes + max(set_aside, in_use, self._live_kv_bytes)

    @property
    def without_prompts_bytes(self) -> int:
        """The same if it had to do without stored prompts."""
        return self._fixed_bytes + max(self.reserved.need.kv_bytes, self._live_kv_bytes)

    @property
    def beyond_bytes(self) -> int:
        """What its requests may come to beyond what is set aside for them and for stored prompts."""
        set_aside = self.reserved.need.kv_bytes + self.reserved.prefix_cache_bytes
        return max(self._live_kv_bytes - set_aside, 0)

    def prompts_bytes_within(self, target_bytes: int) -> int:
        """Return what stored prompts may take for it to count for no more than `target_bytes`; never more than now."""
        kv_bytes = max(self.reserved.need.kv_bytes, self.held.get("kv", 0))
        left_bytes = target_bytes - self._fixed_bytes - kv_bytes
        return max(min(left_bytes, self.reserved.prefix_cache_bytes), 0)

    @property
    def _fixed_bytes(self) -> int:
        need = self.reserved.need
        return need.weights_bytes + max(need.head_room_bytes, self.held.get("buffers", 0))

    @property
    def _live_kv_bytes(self) -> int:
        return max(self.held.get("kv", 0), self.promised_kv_bytes)
