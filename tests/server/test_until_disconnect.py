"""Work for a client that may leave: done, left, cancelled, and two of them at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_manager.mlx_server.api.streaming import ClientLeft, until_disconnect

LEFT = {"type": "http.disconnect"}
BODY = {"type": "http.request"}


async def never() -> Any:
    await asyncio.Event().wait()


async def soon() -> str:
    await asyncio.sleep(0.01)
    return "done"


async def test_the_work_s_result_comes_back_and_the_caller_goes_on() -> None:
    assert await until_disconnect(never, soon()) == "done"
    await asyncio.sleep(0.01)


async def test_the_work_s_error_comes_back() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await until_disconnect(never, fail())


async def test_a_client_that_leaves_ends_the_work() -> None:
    messages = [BODY, LEFT]
    ended = asyncio.Event()

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def work() -> None:
        try:
            await never()
        finally:
            ended.set()

    with pytest.raises(ClientLeft):
        await until_disconnect(receive, work())
    assert ended.is_set()


async def test_work_that_ends_the_connection_doesn_t_cancel_whoever_asked_for_it() -> None:
    complete = asyncio.Event()

    async def receive() -> Any:
        # As uvicorn does: once the last byte is sent, the client counts as gone.
        await complete.wait()
        return LEFT

    async def work() -> str:
        await asyncio.sleep(0)
        complete.set()
        return "sent"

    assert await until_disconnect(receive, work()) == "sent"
    await asyncio.sleep(0.01)


async def test_a_caller_that_is_cancelled_takes_the_work_along() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await never()
        finally:
            ended.set()

    caller = asyncio.create_task(until_disconnect(never, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
