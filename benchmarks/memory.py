"""Do the processes grow? Their memory over ten thousand short requests, after ten thousand others."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child
from benchmarks.contenders import ServerContender
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.rounds import Say
from benchmarks.servers import mlx_manager_server
from benchmarks.work import even_load

REQUESTS = 20_000
CLIENTS = 20
REQUESTS_EACH = 25
OUTPUT_TOKENS = 8
# Bounded caches, tables and windows fill in the first half, by some 5 MiB, and the slope leaves it out.
WARM_UP_SHARE = 0.5
# As are stored prompts in the engine, with so little for them.
ENVIRONMENT = {"MLX_SERVER_PREFIX_CACHE_MIB": "32"}


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident bytes of a process, `API` or `engine`, after so many requests."""

    process: str
    requests: list[int]
    rss_bytes: list[int]

    @property
    def bytes_per_request(self) -> float:
        """The slope of the least-squares line after the warm-up."""
        points = self._after_warm_up()
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0

    @property
    def growth_bytes(self) -> float:
        """What the slope adds up to from the end of the warm-up to the last request."""
        points = self._after_warm_up()
        return self.bytes_per_request * (points[-1][0] - points[0][0])

    def _after_warm_up(self) -> list[tuple[int, int]]:
        points = list(zip(self.requests, self.rss_bytes, strict=True))
        return points[int(len(points) * WARM_UP_SHARE) :]


def measure_memory(
    folder: Path, say: Say, *, requests: int = REQUESTS
) -> tuple[list[Growth], list[str]]:
    """Send `requests` requests, in portions after each of which memory is read. Returns what went wrong, too."""
    path = make_model(folder / "models", "tiny")
    prompts = PromptMaker(path)
    load = even_load(CLIENTS, REQUESTS_EACH, OUTPUT_TOKENS)
    api, engine = growths = [Growth("API", [], []), Growth("engine", [], [])]
    failures = list[str]()
    with ExitStack() as stack:
        child = stack.enter_context(Child("benchmarks.client"))
        server = stack.enter_context(mlx_manager_server(path, folder / "mlx-manager", ENVIRONMENT))
        ways = itertools.cycle(
            ServerContender("MLX Manager", server, child, prompts, stream=stream)
            for stream in (False, True)
        )
        for sent in range(load.requests, requests + 1, load.requests):
            measured = next(ways).run(load, seed=sent)
            failures += measured.answers.failures
            api.rss_bytes.append(server.rss_bytes())
            engine.rss_bytes.append(server.engine_rss_bytes())
            for growth in growths:
                growth.requests.append(sent)
            sizes = (f"{one.process} {one.rss_bytes[-1] / 2**20:.1f} MiB" for one in growths)
            say(f"{sent} requests: {', '.join(sizes)}")
    return growths, failures
