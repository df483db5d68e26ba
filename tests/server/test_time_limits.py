"""A limit that passes in the middle of a stream is that API's own event of an error, and a failure in the audit log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from opentelemetry.trace import StatusCode

from mlx_manager.mlx_server.app import create_app
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, ids

COMPLETION, RESPONSE, MESSAGE = "/v1/completions", "/v1/responses", "/v1/messages"
ASKED: dict[str, dict[str, Any]] = {
    COMPLETION: {"prompt": "Count.", "max_tokens": ENDLESS_TOKENS},
    RESPONSE: {"input": "Count.", "max_output_tokens": ENDLESS_TOKENS, "store": False},
    MESSAGE: {
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": ENDLESS_TOKENS,
    },
}


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that gives any answer half a second."""
    limits = {"chat_timeout_s": 1, "completion_timeout_s": 1}
    folder = tmp_path_factory.mktemp("hurried")
    with running(create_app(settings_for(folder, model_dir, preload=TINY, **limits))) as server:
        yield server


@pytest.fixture
async def http(hurried: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=hurried.url, timeout=60) as client:
        yield client


@pytest.fixture
async def client(hurried: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    url = f"{hurried.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def outcome(server: RunningServer, response: httpx.Response) -> tuple[int | None, str]:
    request_id = response.headers["X-Request-ID"]
    await eventually(lambda: len(server.audited(request_id)) == 1)
    (row,) = server.audited(request_id)
    return row.status, row.outcome


@pytest.mark.parametrize("path", ASKED)
async def test_an_answer_that_takes_too_long_is_a_504_and_an_error_in_its_trace(
    hurried: RunningServer, http: httpx.AsyncClient, spans: Spans, path: str
) -> None:
    response = await http.post(path, json={"model": TINY, "temperature": 0, **ASKED[path]})
    assert response.status_code == 504
    if path == MESSAGE:
        assert response.json()["error"]["type"] == "timeout_error"
    else:
        assert response.json()["error"]["code"] == "request_timeout"
    assert "longer than 1 s" in response.json()["error"]["message"]
    assert await outcome(hurried, response) == (504, "failed")
    await eventually(lambda: hurried.active(TINY) == 0)
    await hurried.close_books()
    trace_id = response.headers["X-Trace-ID"]
    kinds = {
        span.name.partition(" ")[0]: ((span.attributes or {}).get("error.type"), span.status)
        for span in spans.all
        if ids(span.context)[0] == trace_id
    }
    [(error_type, status)] = [kinds[one] for one in ("chat", "text_completion") if one in kinds]
    assert (error_type, status.status_code) == ("request_timeout", StatusCode.ERROR)


async def test_a_stream_of_a_text_completion_ends_with_an_error_that_the_sdk_raises(
    client: AsyncOpenAI,
) -> None:
    asked = ASKED[COMPLETION]
    stream = await client.completions.create(model=TINY, temperature=0, stream=True, **asked)
    texts = list[str]()

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].text)

    with pytest.raises(sdk.APIError, match=r"longer than 1 s") as met:
        await read()
    assert len("".join(texts)) > 0
    assert met.value.code == "request_timeout"


async def test_a_stream_of_a_text_completion_says_no_more_after_its_error(
    hurried: RunningServer, http: httpx.AsyncClient
) -> None:
    asked = {"model": TINY, "temperature": 0, "stream": True, **ASKED[COMPLETION]}
    response = await http.post(COMPLETION, json=asked)
    events = [line for line in response.text.split("\n\n") if line]
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["code"] == "request_timeout"
    assert await outcome(hurried, response) == (200, "failed")


async def test_a_stream_of_a_message_ends_with_anthropics_event_of_an_error(
    hurried: RunningServer, http: httpx.AsyncClient
) -> None:
    asked: dict[str, Any] = {"model": TINY, "stream": True, **ASKED[MESSAGE]}
    greedy = {"temperature": 0}
    response = await http.post(MESSAGE, json=asked | greedy)
    events = [event.splitlines() for event in response.text.split("\n\n") if event]
    assert [event[0] for event in events[:2]] == [
        "event: message_start",
        "event: content_block_start",
    ]
    assert any(event[0] == "event: content_block_delta" for event in events)
    name, data = events[-1]
    assert name == "event: error"
    said = json.loads(data.removeprefix("data: "))
    assert (said["type"], said["error"]["type"]) == ("error", "timeout_error")
    assert "longer than 1 s" in said["error"]["message"]
    assert await outcome(hurried, response) == (200, "failed")

    url = hurried.url
    async with AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError, match="longer than 1 s"):
            async for _ in await client.messages.create(**asked, extra_body=greedy):
                pass
    await eventually(lambda: hurried.active(TINY) == 0)


async def test_a_stream_of_a_response_ends_as_failed(
    hurried: RunningServer, client: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    asked = ASKED[RESPONSE]
    stream = await client.responses.create(model=TINY, temperature=0, stream=True, **asked)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "longer than 1 s" in last.response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))

    response = await http.post(
        RESPONSE, json={"model": TINY, "temperature": 0, "stream": True, **asked}
    )
    assert await outcome(hurried, response) == (200, "failed")
