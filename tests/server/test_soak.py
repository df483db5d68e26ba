"""Thousands of requests leave one row each in the audit log, and nothing else behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import astuple, dataclass
from typing import Any

import httpx
import psutil

from tests.support.running import RunningServer, eventually

MODEL = "test/tiny"
# So many before the server is looked at: caches are full then, and allocators have what they keep.
WARM_UP_REQUESTS = 360
REQUESTS = 1200
CLIENTS = 24
# What the audit log has of a request by the status of its answer.
ROWS = {200: ["completed"], 404: ["failed"], 400: ["failed"]}


@dataclass(frozen=True)
class Possessions:
    """What this process and the engine hold on to."""

    our_files: int
    engine_files: int
    our_threads: int
    engine_threads: int
    tasks: int


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


async def ask_or_leave(http: httpx.AsyncClient, chance: random.Random, request_id: str) -> int:
    """Send one request; one in eight is abandoned in the middle. Returns the status, 0 when abandoned."""
    is_sent = asyncio.Event()

    async def note(event: str, _: dict[str, Any]) -> None:
        if event == "http11.send_request_body.complete":
            is_sent.set()

    asking = asyncio.create_task(
        http.post(
            "/v1/chat/completions",
            json=some_body(chance),
            headers={"X-Request-ID": request_id},
            extensions={"trace": note},
        )
    )
    if chance.random() < 0.125:
        # A task that is cancelled while it connects may leave its socket open.
        await is_sent.wait()
        await asyncio.wait({asking}, timeout=chance.random() / 50)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return 0
    return (await asking).status_code


async def soak(server: RunningServer, name: str, count: int) -> dict[str, int]:
    """Send `count` requests by many clients at once; return the status of each by its request id."""
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:

        async def client(number: int) -> dict[str, int]:
            chance = random.Random(f"{name} {number}")
            ids = [f"{name}-{number}-{turn}" for turn in range(count // CLIENTS)]
            return {each: await ask_or_leave(http, chance, each) for each in ids}

        answers = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await eventually(lambda: server.active(MODEL) == 0)
    return {each: status for statuses in answers for each, status in statuses.items()}


async def possessions(server: RunningServer) -> Possessions:
    engine = server.resident(MODEL).engine
    assert engine is not None
    ours, theirs = psutil.Process(), psutil.Process(engine.pid)
    return Possessions(
        ours.num_fds(),
        theirs.num_fds(),
        ours.num_threads(),
        theirs.num_threads(),
        await server.count_tasks(),
    )


async def no_more_than(server: RunningServer, before: Possessions) -> bool:
    """Whether the server comes to rest, within seconds, with no more than it had `before`."""
    for _ in range(100):
        now = await possessions(server)
        if all(has <= had for has, had in zip(astuple(now), astuple(before), strict=True)):
            return True
        await asyncio.sleep(0.05)
    raise AssertionError(f"{before} has become {now}")


async def test_thousands_of_requests_leave_one_row_each_and_nothing_else(
    server: RunningServer,
) -> None:
    await server.fill_thread_pool()
    await soak(server, "first", WARM_UP_REQUESTS)
    await asyncio.sleep(1)
    before = await possessions(server)
    statuses = await soak(server, "second", REQUESTS)
    assert await no_more_than(server, before)

    counts = Counter(statuses.values())
    assert set(counts) == {0, *ROWS}
    assert counts[200] > REQUESTS / 2
    expected = {each: ROWS[status] for each, status in statuses.items() if status != 0}
    await eventually(lambda: server.audited_outcomes("second-").keys() >= expected.keys())
    await asyncio.sleep(0.5)  # twice what a row may wait for others
    rows = server.audited_outcomes("second-")
    assert {each: rows.get(each, []) for each in expected} == expected
    # One that was abandoned may have been wrong, or not have come in, or have had its answer on the way.
    abandoned = Counter(tuple(rows.get(each, [])) for each in statuses.keys() - expected.keys())
    assert abandoned.keys() <= {(), ("cancelled",), ("completed",), ("failed",)}
    assert abandoned[("cancelled",)] > 0
    assert rows.keys() <= statuses.keys()
