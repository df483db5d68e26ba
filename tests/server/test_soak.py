"""Thousands of requests leave nothing behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx
import psutil

from tests.support.running import RunningServer, eventually

MODEL = "test/tiny"
REQUESTS = 3000
CLIENTS = 24


def some_body(chance: random.Random) -> dict[str, Any]:
    """A short request of any kind; one in ten is wrong."""
    content = "word " * chance.randrange(1, 40)
    return {
        "model": MODEL if chance.random() > 0.05 else "no/such",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": chance.randrange(1, 12),
        "temperature": chance.choice([0, 1, 1 if chance.random() > 0.05 else 9]),
        "stream": chance.random() > 0.5,
        "stop": chance.choice([None, "e"]),
    }


async def ask_or_leave(http: httpx.AsyncClient, chance: random.Random) -> int:
    """Send one request; one in eight is abandoned in the middle. Returns the status, 0 when abandoned."""
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=some_body(chance)))
    if chance.random() < 0.125:
        await asyncio.wait({asking}, timeout=chance.random() / 50)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return 0
    return (await asking).status_code


async def client(http: httpx.AsyncClient, seed: int, count: int) -> list[int]:
    chance = random.Random(seed)
    return [await ask_or_leave(http, chance) for _ in range(count)]


def process_facts(server: RunningServer) -> tuple[int, int, int, int]:
    """Open files of this process and of the engine, threads of both."""
    engine = server.resident(MODEL).engine
    assert engine is not None
    ours, theirs = psutil.Process(), psutil.Process(engine.pid)
    return ours.num_fds(), theirs.num_fds(), ours.num_threads(), theirs.num_threads()


async def soak(server: RunningServer, count: int) -> list[int]:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        seeds = range(count, count + CLIENTS)
        answers = await asyncio.gather(*(client(http, seed, count // CLIENTS) for seed in seeds))
    return [status for statuses in answers for status in statuses]


async def test_thousands_of_requests_leave_no_row_task_or_file_behind(
    server: RunningServer,
) -> None:
    await soak(server, 400)  # every pool of threads and connections has its size after this
    await eventually(lambda: server.active(MODEL) == 0)
    await asyncio.sleep(0.2)
    before, tasks_before = process_facts(server), await server.count_tasks()

    statuses = await soak(server, REQUESTS)
    assert set(statuses) <= {0, 200, 400, 404}
    assert statuses.count(200) > REQUESTS / 2

    await eventually(lambda: server.active(MODEL) == 0)
    await asyncio.sleep(0.2)
    after = process_facts(server)
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)
    assert await server.count_tasks() <= tasks_before + 2
