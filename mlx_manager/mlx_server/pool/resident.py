"""A model of the pool, with all that is known of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from mlx_manager.mlx_server.engine.messages import Loading
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.ledger import Reservation, Standing
from mlx_manager.mlx_server.workers.breaker import Breaker, CircuitState
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.mlx_server.workers.recovery import Recovery


@dataclass(slots=True, eq=False)
class Resident:
    """A model that is in memory, being brought there, or whose engine has died and is being replaced.

    `ended_engine` is the last whose end was counted.

    `evicted` are the models that made room for it, `loading` how far its weights have come; it was last in use at
    `used_s`, in monotonic seconds.
    """

    files: ModelFiles
    recovery: Recovery
    breaker: Breaker
    reservation: Reservation = field(default_factory=Reservation)
    evicted: tuple[str, ...] = ()
    engine: EngineProcess | None = None
    ended_engine: EngineProcess | None = None
    loading: Loading | None = None
    leases: int = 0
    restarts: int = 0
    used_s: float = field(default_factory=time.monotonic)
    load: asyncio.Task[EngineProcess] | None = None
    supervisor: asyncio.Task[None] | None = None
    alarm: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is an engine that can be given work."""
        return self.engine is not None and self.engine.is_alive

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has had it loaded yet, nor wants it now."""
        return not self.leases and self.load is None and self.engine is None

    @property
    def circuit(self) -> CircuitState:
        """Whether its engines may be tried; what has worked since it was opened closes it."""
        if self.engine is not None and self.is_running and self.engine.has_worked:
            self.breaker.close()
        return self.breaker.state

    def admit(self) -> None:
        """Let a request try the engine. Raises ModelUnavailable."""
        if self.circuit != "closed":
            self.breaker.admit()

    @property
    def state(self) -> Literal["loading", "ready", "stalled", "dead"]:
        """What its engine is doing; one that died stays `dead` until a fresh one is ready."""
        if self.engine is None:
            return "loading" if self.restarts == 0 else "dead"
        if not self.engine.is_alive:
            return "dead"
        return "stalled" if self.engine.is_stalled else "ready"

    @property
    def is_healthy(self) -> bool:
        """Whether its engine speaks, or is on its first way in."""
        return self.state in ("loading", "ready")

    @property
    def committed_bytes(self) -> int:
        """What counts as its own in the budget."""
        return self.standing.counted_bytes

    def share(self, prefix_cache_bytes: int, part_bytes: int = 0) -> None:
        """Set so much aside for stored prompts; requests get `part_bytes` beyond that and what they were promised."""
        self.reservation = replace(self.reservation, prefix_cache_bytes=prefix_cache_bytes)
        extra_bytes = self.standing.beyond_bytes + part_bytes
        self.reservation = replace(self.reservation, extra_bytes=extra_bytes)

    @property
    def standing(self) -> Standing:
        """What was set aside for it, and what it has."""
        return Standing.of(self.reservation, self.engine)
