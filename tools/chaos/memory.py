"""The memory of a server's processes in a soak, which must not become more with the requests that they answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from statistics import median_low

import psutil

from tools.chaos.server import Server
from tools.resident import resident_bytes

# In the first round caches fill, threads start, and allocators keep what they had at the widest batch.
MOST_GROWTH = 1.1
LOOK_S = 0.2


@dataclass(slots=True)
class Memory:
    """In MiB: `api` after each round; the most of any one engine in each round, and of each engine by its process id.

    Engines are killed now and then and begin anew, so what one has at a moment says how old it is: only the most of
    whole lives can be compared. Of 63 two had a tenth more than others, hence the middle one.
    """

    api: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    lives: dict[int, float] = field(default_factory=dict)

    async def watch(self, server: Server) -> None:
        """Begin a round, and follow the engines until cancelled."""
        self.engine.append(0.0)
        while True:
            for engine in server.engines:
                self.see_engine(engine.pid, resident_bytes([engine]) / 2**20)
            await asyncio.sleep(LOOK_S)

    def see_engine(self, pid: int, mib: float) -> None:
        """Note what an engine has now."""
        self.lives[pid] = max(self.lives.get(pid, 0.0), mib)
        self.engine[-1] = max(self.engine[-1], mib)

    def end_round(self, server: Server) -> None:
        """Note what the API process has at the end of a round."""
        self.api.append(resident_bytes([psutil.Process(server.pid)]) / 2**20)

    def engines_before_and_after(self) -> tuple[float, float] | None:
        """Return the middle one of what engines had at most, of the first and of the second half of whole lives.

        None when there are less than two. The first engine is killed at half the age of the others, and the last one
        isn't killed.
        """
        whole = list(self.lives.values())[1:-1]
        half = len(whole) // 2
        return (median_low(whole[:half]), median_low(whole[half:])) if half else None

    def growth(self) -> list[str]:
        """Say what grew by more than a tenth: the API process since the first round, engines from half to half."""
        compared = {
            "API process": (self.api[0], self.api[-1]),
            "engines": self.engines_before_and_after(),
        }
        return [
            f"memory of the {name} grew from {both[0]:.0f} to {both[1]:.0f} MiB"
            for name, both in compared.items()
            if both and both[1] > MOST_GROWTH * both[0]
        ]
