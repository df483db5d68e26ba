"""Many clients, clients that leave, and an engine that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai as sdk
import psutil
import pytest
from openai import AsyncOpenAI

from tests.support.running import RunningServer, eventually

MODEL = "test/tiny"


def body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Count to a million."}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 3000} | changes


async def whole_text(client: AsyncOpenAI, prompt: str, is_streamed: bool) -> str:
    messages = [{"role": "user", "content": prompt}]
    request = body(messages=messages, max_tokens=50, temperature=1, seed=len(prompt))
    if not is_streamed:
        answer = await client.chat.completions.create(**request)
        return str(answer.choices[0].message.content)
    stream = await client.chat.completions.create(**request, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.fixture
async def loaded(openai: AsyncOpenAI) -> None:
    """The model is in memory."""
    await openai.chat.completions.create(**body(max_tokens=1))


async def test_32_clients_at_once_each_get_their_own_answer(openai: AsyncOpenAI) -> None:
    prompts = [f"Question {number}" for number in range(32)]
    alone = [await whole_text(openai, prompt, False) for prompt in prompts]
    together = await asyncio.gather(
        *(whole_text(openai, prompt, bool(n % 2)) for n, prompt in enumerate(prompts))
    )
    assert together == alone
    assert len(set(alone)) > 16


async def test_requests_really_run_in_one_batch(
    openai: AsyncOpenAI, server: RunningServer, loaded: None
) -> None:
    answers = [
        asyncio.create_task(openai.chat.completions.create(**body(max_tokens=400)))
        for _ in range(8)
    ]
    await eventually(lambda: server.active(MODEL) == 8)
    await asyncio.gather(*answers)
    assert server.active(MODEL) == 0


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_frees_its_place(
    http: httpx.AsyncClient, server: RunningServer, loaded: None, is_streamed: bool
) -> None:
    asking = asyncio.create_task(
        http.post("/v1/chat/completions", json=body(stream=is_streamed, temperature=1))
    )
    await eventually(lambda: server.active(MODEL) == 1)
    asking.cancel()
    await eventually(lambda: server.active(MODEL) == 0)
    assert await is_idle(server)


async def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_place(
    http: httpx.AsyncClient, server: RunningServer, loaded: None
) -> None:
    long = [{"role": "user", "content": "word " * 1200}]
    asking = asyncio.create_task(http.post("/v1/chat/completions", json=body(messages=long)))
    await eventually(lambda: server.active(MODEL) == 1)
    asking.cancel()
    await eventually(lambda: server.active(MODEL) == 0)


async def test_a_client_that_stops_reading_holds_nobody_up(
    http: httpx.AsyncClient, openai: AsyncOpenAI, server: RunningServer, loaded: None
) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as slow:
        lines = slow.aiter_lines()
        await anext(lines)
        assert len(await whole_text(openai, "Hello", True)) > 0
        rest = [line async for line in lines]
    assert rest[-2] == "data: [DONE]"


async def is_idle(server: RunningServer) -> bool:
    """Whether the engine process has stopped computing."""
    engine = server.resident(MODEL).engine
    assert engine is not None
    process = psutil.Process(engine.pid)
    before_s = sum(process.cpu_times()[:2])
    await asyncio.sleep(0.5)
    return sum(process.cpu_times()[:2]) - before_s < 0.25


class KilledStream:
    """A stream whose engine is killed after its first text."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.text = ""

    async def read(self, stream: AsyncIterator[Any]) -> None:
        async for chunk in stream:
            if not self.text:
                engine = self._server.resident(MODEL).engine
                assert engine is not None
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
            self.text += chunk.choices[0].delta.content or "-"


async def test_a_killed_engine_is_a_clear_error_and_the_next_request_is_answered(
    openai: AsyncOpenAI, http: httpx.AsyncClient, server: RunningServer, loaded: None
) -> None:
    whole = asyncio.create_task(http.post("/v1/chat/completions", json=body()))
    await eventually(lambda: server.active(MODEL) == 1)
    stream = await openai.chat.completions.create(**body(stream=True))
    with pytest.raises(sdk.APIError, match="killed by signal 9"):
        await KilledStream(server).read(stream)
    refused = await whole
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_failed"
    assert refused.headers["Retry-After"] == "1"
    assert await whole_text(openai, "Hello again", True)


async def test_health_is_503_while_an_engine_is_dead_and_200_again_when_it_was_replaced(
    http: httpx.AsyncClient, server: RunningServer, loaded: None
) -> None:
    engine = server.resident(MODEL).engine
    assert engine is not None
    assert engine.pid is not None
    assert (await http.get("/health")).status_code == 200
    os.kill(engine.pid, signal.SIGKILL)
    await eventually(lambda: not engine.is_alive)
    sick = await http.get("/health")
    assert sick.status_code == 503
    assert {"id": MODEL, "state": "dead"}.items() <= sick.json()["models"][-1].items()

    end_s = time.monotonic() + 60
    while (await http.get("/health")).status_code != 200:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.05)
