"""Live updates: one sampler for all, latest wins, nothing while nobody looks, an end on request."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import httpx
import pytest

from mlx_manager.web.live import Live, ModelNow, Snapshot
from tests.support.process import started
from tests.support.running import eventually


class Server:
    """Something to look at; counts the looks."""

    def __init__(self) -> None:
        self.looks = 0
        self.fails = False
        self.now = Snapshot(is_healthy=True)

    async def look(self) -> Snapshot:
        self.looks += 1
        if self.fails:
            raise OSError
        return self.now


async def test_everybody_is_told_by_one_sampler_and_only_of_changes() -> None:
    server = Server()
    live = Live(server.look, interval_s=0.01)
    readers = [live.follow(), live.follow()]
    assert [await anext(reader) for reader in readers] == [server.now] * 2

    await asyncio.sleep(0.05)
    server.now = Snapshot(is_healthy=False, newest_trace="a")

    assert [await anext(reader) for reader in readers] == [server.now] * 2
    for reader in readers:
        await reader.aclose()


async def test_nobody_looks_while_nobody_listens() -> None:
    server = Server()
    live = Live(server.look, interval_s=0.001)
    reader = live.follow()
    await anext(reader)
    await reader.aclose()

    before = server.looks
    await asyncio.sleep(0.05)
    assert server.looks == before

    again = live.follow()
    assert await anext(again) == server.now
    await again.aclose()


async def test_a_look_that_fails_is_followed_by_another() -> None:
    server = Server()
    server.fails = True
    live = Live(server.look, interval_s=0.001)
    waiting = asyncio.create_task(anext(live.follow()))
    await eventually(lambda: server.looks > 2)

    server.fails = False

    assert await waiting == server.now
    live.close()


async def test_closing_ends_what_everybody_follows() -> None:
    live = Live(Server().look, interval_s=60)
    reader = live.follow()
    await anext(reader)
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)

    live.close()

    with pytest.raises(StopAsyncIteration):
        await waiting
    assert [snapshot async for snapshot in live.follow()] == []


def test_a_snapshot_counts_the_requests_in_progress() -> None:
    models = (ModelNow("a", "ready", 2), ModelNow("b", "loading", 1))

    assert Snapshot(is_healthy=True, models=models).active == 3


def test_a_stream_of_events_ends_by_itself_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with (
        started(tmp_path, "serve") as server,
        httpx.stream("GET", f"{server.url}/api/events", timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "retry: 1000"
        first = next(line for line in lines if line.startswith("data: "))
        assert json.loads(first.removeprefix("data: "))["is_healthy"] is True

        server.process.send_signal(signal.SIGTERM)

        # Not cut off: an end that is said. An open stream would be cancelled after the time that requests get.
        assert "event: end" in list(lines)
        assert server.wait() in (0, -signal.SIGTERM)
