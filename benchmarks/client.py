"""Clients that cost little: a load over HTTP from one process. `python -m benchmarks.client`.

While a load runs, an answer's bytes are stamped and kept, and nothing else; they are read when it is over.
"""

from __future__ import annotations

import asyncio
import time

import uvloop

from benchmarks.child import serve
from benchmarks.connection import Connection, Reply
from benchmarks.replies import Reading, read
from benchmarks.work import Answers, ClientTask

TIME_LIMIT_S = 600.0


def run(task: ClientTask) -> Answers:
    """Send all requests: of each client one at a time, of all clients together."""
    return uvloop.run(_run(task))


async def _run(task: ClientTask) -> Answers:
    requests = [[_request(task, posted.body) for posted in own] for own in task.clients]
    started_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.timeout(TIME_LIMIT_S):
        replies = await asyncio.gather(*(_client(task, own) for own in requests))
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    readings = [
        read(reply, posted.length)
        for own, sent in zip(replies, task.clients, strict=True)
        for reply, posted in zip(own, sent, strict=True)
    ]
    return _summed(readings, wall_s, cpu_s)


async def _client(task: ClientTask, requests: list[bytes]) -> list[Reply]:
    connection = Connection(task.host, task.port)
    try:
        return [await connection.ask(request) for request in requests]
    finally:
        connection.close()


def _request(task: ClientTask, body: str) -> bytes:
    data = body.encode()
    head = (
        f"POST {task.path} HTTP/1.1\r\n"
        f"Host: {task.host}:{task.port}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _summed(readings: list[Reading], wall_s: float, cpu_s: float) -> Answers:
    return Answers(
        wall_s=wall_s,
        cpu_s=cpu_s,
        requests=len(readings),
        tokens=sum(reading.tokens for reading in readings),
        first_token_s=[
            reading.first_token_s for reading in readings if reading.first_token_s is not None
        ],
        gaps_s=[gap for reading in readings for gap in reading.gaps_s],
        failures=[reading.failure for reading in readings if reading.failure is not None],
    )


if __name__ == "__main__":
    serve(run, ClientTask)
