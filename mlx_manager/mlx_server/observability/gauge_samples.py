"""Write down how busy and how full the models in memory are: looked at each second, a row a model every 15."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from mlx_manager.mlx_server.pool.ledger import held_bytes
from mlx_manager.mlx_server.pool.pool import ModelPool, Resident
from mlx_manager.traces.samples import Sample

# As often as an engine says how it is.
LOOK_EVERY_S = 1.0
LOOKS_PER_SAMPLE = 15

Put = Callable[[Sample], object]


@dataclass(slots=True)
class _Gauges:
    """What was seen of one model since the last sample."""

    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)

    def see(self, resident: Resident) -> None:
        engine = resident.engine
        vitals = engine.vitals if engine is not None and engine.is_alive else None
        self.waiting.append(vitals.waiting if vitals else 0)
        self.running.append(vitals.running if vitals else 0)
        for kind, size in held_bytes(engine).items():
            self.held[kind] = max(size, self.held.get(kind, 0))


class GaugeSampler:
    """Looks at a pool's engines, and sums up what it saw."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._process = secrets.randbits(48)
        self._looks = 0
        self._seen: dict[str, _Gauges] = {}

    def look(self) -> None:
        """See what each engine said last."""
        self._looks += 1
        for resident in self._pool.residents:
            self._seen.setdefault(resident.files.id, _Gauges()).see(resident)

    def samples(self) -> Iterator[Sample]:
        """Sum up what was seen since the last time; a model that was there for a part of it counts for that part."""
        looks, self._looks = self._looks, 0
        seen, self._seen = self._seen, {}
        if not looks:
            return
        now_ns = time.time_ns()
        for model, gauges in (seen or {"": _Gauges()}).items():
            yield Sample(
                now_ns,
                self._process,
                model,
                sum(gauges.waiting) / looks,
                max(gauges.waiting, default=0),
                sum(gauges.running) / looks,
                max(gauges.running, default=0),
                **{f"{kind}_bytes": size for kind, size in gauges.held.items()},
            )


@asynccontextmanager
async def sampling(pool: ModelPool, put: Put) -> AsyncIterator[None]:
    """Give `put` samples until the block ends, and then what was seen since the last ones."""
    sampler = GaugeSampler(pool)
    looking = asyncio.create_task(_look_and_put(sampler, put))
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        sampler.look()
        _put_all(sampler, put)


async def _look_and_put(sampler: GaugeSampler, put: Put) -> None:
    while True:
        for _ in range(LOOKS_PER_SAMPLE):
            sampler.look()
            await asyncio.sleep(LOOK_EVERY_S)
        _put_all(sampler, put)


def _put_all(sampler: GaugeSampler, put: Put) -> None:
    for sample in sampler.samples():
        put(sample)
