"""Many short requests with everything that goes wrong between them; afterwards nothing may be left over."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tools.chaos.server import MODEL, Server

CLIENTS = 24
# An engine is killed after about so many requests.
REQUESTS_PER_KILL = 500
# Memory may still settle: caches fill, allocators keep what they had at the widest batch.
MOST_GROWTH = 1.25
ROUNDS = 4


@dataclass(slots=True)
class Soaked:
    """What became of the requests, and what the server had left in the end; nothing in `wrong` means nothing was."""

    statuses: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    seconds: float = 0.0
    memory_mib: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def soak(folder: Path, requests: int, say: Callable[[str], None]) -> Soaked:
    """Send `requests` in four rounds; look at the memory after each."""
    soaked, began_s = Soaked(), time.monotonic()
    async with Server(folder, max_batch=16, prefix_cache_mib=8) as server:
        for round_number in range(ROUNDS):
            await _round(server, requests // ROUNDS, round_number, soaked)
            await asyncio.sleep(1.5)  # what is written and measured once a second
            soaked.memory_mib.append(_memory_mib(server))
            say(
                f"round {round_number + 1}: {soaked.memory_mib[-1]:.0f} MiB {dict(soaked.statuses)}"
            )
        await _look(server, soaked)
    soaked.seconds = time.monotonic() - began_s
    return soaked


async def _round(server: Server, requests: int, number: int, soaked: Soaked) -> None:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=180, limits=limits) as http:
        killing = asyncio.create_task(_kill_now_and_then(server, soaked))
        try:
            await asyncio.gather(
                *(
                    _client(http, f"{number}-{client}", requests // CLIENTS, soaked)
                    for client in range(CLIENTS)
                )
            )
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)


async def _kill_now_and_then(server: Server, soaked: Soaked) -> None:
    while True:
        await asyncio.sleep(0.05)
        if soaked.statuses.total() >= (soaked.kills + 0.5) * REQUESTS_PER_KILL:
            server.send_engines(signal.SIGKILL)
            soaked.kills += 1


async def _client(http: httpx.AsyncClient, name: str, requests: int, soaked: Soaked) -> None:
    chance = random.Random(name)
    for turn in range(requests):
        headers = {
            "X-Request-ID": f"soak-{name}-{turn}",
            "Content-Type": "application/json",
        }
        path, body = _some(chance)
        asking = asyncio.create_task(http.post(path, content=body, headers=headers))
        if chance.random() < 0.1:
            await asyncio.wait({asking}, timeout=chance.random() / 20)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            soaked.statuses["left"] += 1
            continue
        response = await asking
        is_cut = '"error"' in response.text and response.status_code == 200
        soaked.statuses["cut" if is_cut else str(response.status_code)] += 1


def _some(chance: random.Random) -> tuple[str, bytes]:
    """Path and body of a short request of any kind; one in ten is wrong in one way or another."""
    if chance.random() < 0.03:
        return "/v1/chat/completions", b'{"model": "chaos/tiny", "messages": ['
    body: dict[str, Any] = {
        "model": MODEL if chance.random() > 0.03 else "no/such",
        "messages": [{"role": "user", "content": "word " * chance.randrange(1, 40)}],
        "max_tokens": chance.randrange(1, 12) if chance.random() > 0.03 else -1,
        "stream": chance.random() > 0.5,
    }
    path = "/v1/messages" if chance.random() < 0.3 else "/v1/chat/completions"
    return path, httpx.Request("POST", "http://x", json=body).content


def _memory_mib(server: Server) -> float:
    """Of the API process: engines come and go."""
    return float(psutil.Process(server.pid).memory_info().rss) / 2**20


async def _look(server: Server, soaked: Soaked) -> None:
    """See that books, engines and memory are as if nothing had happened."""
    figures = await server.figures()
    for name in ("mlx_requests_active", "mlx_engine_row_difference", "mlx_queue_depth"):
        if figures.get(name) != 0:
            soaked.wrong.append(f"{name} is {figures.get(name)} in the end")
    if await server.active():
        soaked.wrong.append("requests are still active")
    if len(server.engines) != 1:
        soaked.wrong.append(f"there are {len(server.engines)} engine processes")
    unexpected = soaked.statuses.keys() - {"200", "400", "404", "left"}
    soaked.wrong += [f"{soaked.statuses[one]} answers: {one}" for one in unexpected]
    first, last = soaked.memory_mib[0], soaked.memory_mib[-1]
    if last > MOST_GROWTH * first:
        soaked.wrong.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
    soaked.wrong += _books(server, soaked)


def _books(server: Server, soaked: Soaked) -> list[str]:
    rows = Counter(one for one, _ in server.outcomes() if one.startswith("soak-"))
    outcomes = Counter(outcome for one, outcome in server.outcomes() if one.startswith("soak-"))
    statuses = soaked.statuses
    wrong = [f"{one} has {count} rows" for one, count in rows.items() if count > 1]
    if outcomes["running"]:
        wrong.append(f"{outcomes['running']} requests count as running")
    # A client that leaves may do so before its request has come, or after its answer has gone.
    answered = statuses.total() - statuses["left"]
    if not answered <= len(rows) <= statuses.total():
        wrong.append(f"{answered} were answered, and {len(rows)} are in the books")
    if not statuses["200"] <= outcomes["completed"] <= statuses["200"] + statuses["left"]:
        wrong.append(f"{statuses['200']} were whole, {outcomes['completed']} by the books")
    return wrong
