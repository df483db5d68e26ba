"""A stream is silent for no longer than it may: while its request waits, its model loads or its prompt is read."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mlx_manager.mlx_server.app import create_app
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.support.running import RunningServer, eventually, running, settings_for

EVERY_S = 0.2
KEEP_ALIVE = ": keep-alive"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
SHORT: dict[str, Any] = {"model": TINY, "stream": True, "temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**SHORT, "messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {**SHORT, "prompt": "Hi", "max_tokens": 3},
    "/v1/responses": {**SHORT, "input": "Hi", "max_output_tokens": 3},
    "/v1/messages": {**SHORT, "messages": MESSAGES, "max_tokens": 3},
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server with a single place, which doesn't like silence."""
    settings = settings_for(
        tmp_path_factory.mktemp("alive"),
        model_dir,
        max_batch=1,
        stream_keep_alive_s=EVERY_S,
        chat_timeout_s=30,
    )
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def http(narrow: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=narrow.url, timeout=60) as client:
        yield client


@pytest.fixture
async def openai(narrow: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic(narrow: RunningServer) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=narrow.url, api_key="none", max_retries=0) as client:
        yield client


@asynccontextmanager
async def taken(narrow: RunningServer, http: httpx.AsyncClient) -> AsyncIterator[None]:
    """The only place is taken as long as this holds."""
    body = {**BODIES["/v1/chat/completions"], "max_tokens": ENDLESS_TOKENS}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        arriving = response.aiter_lines()
        while not (await anext(arriving)).startswith("data: "):
            pass
        yield
    await eventually(lambda: narrow.active(TINY) == 0)


async def next_line(arriving: AsyncIterator[str]) -> str:
    """Read the next line that isn't empty."""
    while not (line := await anext(arriving)):
        pass
    return line


async def lines(response: httpx.Response) -> list[str]:
    return [line async for line in response.aiter_lines() if line]


@pytest.mark.parametrize("path", BODIES)
async def test_who_waits_for_a_turn_gets_headers_and_signs_of_life(
    narrow: RunningServer, http: httpx.AsyncClient, path: str
) -> None:
    async with httpx.AsyncClient(base_url=narrow.url, timeout=60) as other:
        async with taken(narrow, http):
            waiting = other.stream("POST", path, json=BODIES[path])
            response = await waiting.__aenter__()
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            await eventually(lambda: narrow.active(TINY) == 2)
            arriving = response.aiter_lines()
            assert [await next_line(arriving) for _ in range(4)] == [KEEP_ALIVE] * 4
        found = [line async for line in arriving if line]
        await waiting.__aexit__(None, None, None)
    first = next(line for line in found if line != KEEP_ALIVE)
    assert first.startswith(("data: {", "event: "))


async def test_the_real_clients_pass_over_them(
    narrow: RunningServer, http: httpx.AsyncClient, openai: AsyncOpenAI, anthropic: AsyncAnthropic
) -> None:
    """Each gets its stream while the place is taken, and what it would have got without a wait."""

    async def chat() -> Any:
        return await openai.chat.completions.create(**BODIES["/v1/chat/completions"])

    async def completion() -> Any:
        return await openai.completions.create(**BODIES["/v1/completions"])

    async def response() -> Any:
        return await openai.responses.create(**BODIES["/v1/responses"])

    async def message() -> Any:
        body = {**BODIES["/v1/messages"]}
        extra = {"temperature": body.pop("temperature")}
        return await anthropic.messages.create(**body, extra_body=extra)

    async def kinds(stream: Any) -> list[str]:
        """The kinds of events in their order; how many pieces a text comes in is a matter of time."""
        found = [getattr(event, "type", None) or event.object async for event in stream]
        return [kind for kind, _ in groupby(found)]

    for ask in (chat, completion, response, message):
        at_once = await kinds(await ask())
        async with taken(narrow, http):
            stream = await ask()
            await asyncio.sleep(3 * EVERY_S)
            assert narrow.active(TINY) == 2
        assert await kinds(stream) == at_once


async def test_what_is_known_in_time_is_in_the_headers_and_else_in_a_comment(
    narrow: RunningServer, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {**BODIES["/v1/chat/completions"], "model": "test/late", "max_tokens": 10**6}
    body |= {"stop": ["e", "a"]}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        found = await lines(response)
    # A process takes longer to start than silence may last.
    assert found[0] == KEEP_ALIVE
    told = [line for line in found if line.startswith(": X-Adjusted-Parameters: max_tokens=")]
    assert len(told) == 1
    assert "x-adjusted-parameters" not in response.headers
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert KEEP_ALIVE not in (await lines(response))[0]
    assert response.headers["x-adjusted-parameters"].startswith("max_tokens=")


async def test_an_error_that_comes_in_time_has_its_status(
    narrow: RunningServer, http: httpx.AsyncClient
) -> None:
    body = {**BODIES["/v1/chat/completions"], "model": "nobody/nothing"}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 404
    short = {**BODIES["/v1/chat/completions"], "model": "test/short"}
    # Once it is in memory nothing takes long any more.
    assert (await http.post("/v1/chat/completions", json=short)).status_code == 200
    long = {**short, "messages": [{**MESSAGES[0], "content": "a " * 100}]}
    response = await http.post("/v1/chat/completions", json=long)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.status_code == 400


@pytest.fixture(scope="module")
def slow_to_fail(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Iterator[RunningServer]:
    """A server whose model's process starts, and then finds that its weights can't be read."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(model_dir / "test" / "tiny", folder / "test" / "broken")
    (folder / "test" / "broken" / "model.safetensors").write_bytes(b"no weights")
    settings = settings_for(tmp_path_factory.mktemp("failing"), folder, stream_keep_alive_s=EVERY_S)
    with running(create_app(settings)) as server:
        yield server


async def test_an_error_that_comes_later_is_an_event_that_the_clients_raise(
    slow_to_fail: RunningServer,
) -> None:
    server, model = slow_to_fail, {"model": "test/broken"}
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai:
        chat = await openai.chat.completions.create(**BODIES["/v1/chat/completions"] | model)
        with pytest.raises(sdk.APIError, match="broken"):
            [_ async for _ in chat]
        response = await openai.responses.create(**BODIES["/v1/responses"] | model)
        events = [event async for event in response]
    assert [event.type for event in events] == ["response.created", "response.failed"]
    assert events[-1].response.error.code == "server_error"
    assert [event.sequence_number for event in events] == [0, 1]


async def test_a_client_that_leaves_the_queue_frees_its_place_in_it(
    narrow: RunningServer, http: httpx.AsyncClient
) -> None:
    async with (
        taken(narrow, http),
        httpx.AsyncClient(base_url=narrow.url, timeout=60) as other,
    ):
        body = BODIES["/v1/chat/completions"]
        async with other.stream("POST", "/v1/chat/completions", json=body) as response:
            await eventually(lambda: narrow.active(TINY) == 2)
            request_id = response.headers["x-request-id"]
        await eventually(lambda: narrow.active(TINY) == 1)
        await eventually(lambda: bool(narrow.audited(request_id)))
        [row] = narrow.audited(request_id)
        assert row.outcome == "cancelled"


async def test_a_long_prompt_doesn_t_hold_up_the_first_event(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> None:
    """Read in small pieces, which takes a while; the first chunk comes before, and signs of life in between."""
    settings = settings_for(
        tmp_path_factory.mktemp("long"),
        model_dir,
        stream_keep_alive_s=0.02,
        idle_prefill_chunk_tokens=16,
        prefill_chunk_tokens=16,
    )
    body = {**BODIES["/v1/chat/completions"], "messages": [{**MESSAGES[0], "content": "b " * 1900}]}
    with running(create_app(settings)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await http.post("/v1/chat/completions", json=BODIES["/v1/chat/completions"])
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                found = await lines(response)
    data = [line for line in found if line.startswith("data: ")]
    role, first = found.index(data[0]), found.index(data[1])
    assert '"role":"assistant"' in data[0]
    assert set(found[role + 1 : first]) == {KEEP_ALIVE}


async def test_a_client_that_gives_up_while_its_prompt_is_read_gets_there_by_trying_again(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> None:
    """Each attempt goes on where the last one was cut off, so a limit that none of them could meet alone is enough."""
    settings = settings_for(
        tmp_path_factory.mktemp("retried"),
        model_dir,
        idle_prefill_chunk_tokens=16,
        prefill_chunk_tokens=16,
    )
    asked: dict[str, Any] = {"model": TINY, "temperature": 0, "max_tokens": 1}
    with running(create_app(settings)) as server:
        async with AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def ask(text: str, timeout_s: float) -> Any:
                turns: list[Any] = [{"role": "user", "content": text}]
                hurried = client.with_options(timeout=timeout_s)
                return await hurried.chat.completions.create(messages=turns, **asked)

            await ask("Hi", 60)
            began = time.monotonic()
            patient = await ask("b " * 1900, 60)
            limit_s = (time.monotonic() - began) / 4
            attempts = 0
            while True:
                attempts += 1
                assert attempts < 50
                try:
                    answer = await ask("Again " + "b " * 1900, limit_s)
                    break
                except sdk.APITimeoutError:
                    continue
    assert attempts > 1, limit_s
    assert answer.usage.prompt_tokens > patient.usage.prompt_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens > 0
