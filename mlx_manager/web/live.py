"""One sampler for all open pages: looks at the server once a second while anybody watches, and tells who listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Proxies close a connection that is silent for a minute, and only writing finds out that a reader is gone.
HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class ModelNow:
    """A model in memory; `active` counts the requests that it works on or that wait in it.

    `memory_bytes` is all that its engine holds, freed buffers too; `kv_bytes` the keys and values among it. None until
    the engine has told. While it is loading, `loaded_share` of its weights is there.
    """

    id: str
    state: str
    active: int
    waiting: int = 0
    memory_bytes: int | None = None
    kv_bytes: int | None = None
    loaded_share: float | None = None
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What pages show of the present moment; the marks change when there is something new to list.

    `committed_bytes` are what all models count for in the memory budget.
    """

    is_healthy: bool
    models: tuple[ModelNow, ...] = ()
    newest_trace: str | None = None
    newest_request: int | None = None
    committed_bytes: int = 0

    @property
    def active(self) -> int:
        """Requests that are being worked on or wait."""
        return sum(model.active for model in self.models)

    @property
    def waiting(self) -> int:
        """Those of them that have no place in a batch yet."""
        return sum(model.waiting for model in self.models)

    @property
    def memory_bytes(self) -> int:
        """What all engines hold together."""
        return sum(model.memory_bytes or 0 for model in self.models)


class Live:
    """Fans the newest snapshot out. A slow reader misses snapshots and holds nobody up; without readers it rests."""

    def __init__(self, look: Callable[[], Awaitable[Snapshot]], interval_s: float = 1.0) -> None:
        self._look = look
        self._interval_s = interval_s
        self._latest: Snapshot | None = None
        self._changed = asyncio.Event()
        self._watchers = 0
        self._sampler: asyncio.Task[None] | None = None
        self._is_closed = False

    async def follow(self) -> AsyncGenerator[Snapshot | None, None]:
        """Yield each new snapshot, and None where nothing was new for a while. Ends when this is closed."""
        self._watchers += 1
        if self._sampler is None and not self._is_closed:
            self._sampler = asyncio.create_task(self._sample())
        try:
            seen: Snapshot | None = None
            while not self._is_closed:
                changed = self._changed
                if self._latest is not None and self._latest is not seen:
                    seen = self._latest
                    yield seen
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield None
        finally:
            self._watchers -= 1
            if self._watchers == 0:
                self._rest()

    def close(self) -> None:
        """End what everybody follows, at once."""
        self._is_closed = True
        self._rest()
        self._wake()

    def _rest(self) -> None:
        if self._sampler is not None:
            self._sampler.cancel()
            self._sampler = None
        # What was seen before a rest is no longer the present.
        self._latest = None

    async def _sample(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await self._look_once()
                await asyncio.sleep(self._interval_s)

    async def _look_once(self) -> None:
        try:
            snapshot = await self._look()
        except Exception as error:  # noqa: BLE001 - the next look may succeed, and pages say how old they are
            logger.warning("live updates failing: %(error)s", {"error": type(error).__name__})
            return
        if snapshot != self._latest:
            self._latest = snapshot
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
