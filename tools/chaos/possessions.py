"""What a server's processes hold, seen from outside: it must not become more with the requests that they answer."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from dataclasses import dataclass

import psutil

from tools.chaos.server import Server
from tools.chaos.settling import settled

# These say how much there is to do; at rest there is nothing.
NOTHING_TO_DO = (
    "mlx_requests_active",
    "mlx_engine_row_difference",
    "mlx_queue_depth",
    "mlx_batch_width",
    "mlx_circuit_open",
)
REQUESTS = "requests in engines"
LOST = "mlx_telemetry_dropped_total"
# An event loop starts the threads of its own pool as it comes to need them, so many at most, and keeps them.
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
MAY_GROW_BY = {"threads": POOL_THREADS}


@dataclass(frozen=True, slots=True)
class Held:
    """What there is when nobody asks anything: by name, as a number."""

    figures: dict[str, float]

    def unrest(self) -> list[str]:
        """Say what there is still to do."""
        return [
            f"{name} is {self.figures[name]:.0f} when nobody asks anything"
            for name in (*NOTHING_TO_DO, REQUESTS)
            if self.figures[name]
        ]

    def beyond(self, before: Held) -> list[str]:
        """Say what there is more of than there was."""
        return [
            f"{name} was {before.figures[name]:.0f} and is {now:.0f}"
            for name, now in self.figures.items()
            if now > before.figures[name] + MAY_GROW_BY.get(name, 0)
        ]


async def held_at_rest(server: Server, before: Held | None = None) -> Held:
    """Return what the server holds once that is no more than `before`, or what it still has after some time."""
    return await settled(
        lambda: _held(server),
        lambda held: not (held.unrest() or (before and held.beyond(before))),
    )


async def _held(server: Server) -> Held:
    process, metrics = psutil.Process(server.pid), await server.figures()
    # An engine that has just come up says nothing of itself for a second: that isn't nothing to do.
    unsaid = math.inf if server.engines else 0.0
    return Held(
        {
            **{name: metrics.get(name, unsaid) for name in NOTHING_TO_DO},
            LOST: metrics[LOST],
            REQUESTS: await server.active(),
            "engine processes": len(server.engines),
            "child processes": len(process.children(recursive=True)),
            "file descriptors": process.num_fds(),
            "threads": process.num_threads(),
            "tasks": await _tasks(server),
        }
    )


async def _tasks(server: Server) -> int:
    """Have the server's event loop count its tasks; see `inside`."""
    server.tasks.write_text("")
    server.send(signal.SIGUSR2)
    for _ in range(1000):
        if said := server.tasks.read_text():
            return int(said)
        await asyncio.sleep(0.01)
    raise TimeoutError("the server does not count its tasks")
