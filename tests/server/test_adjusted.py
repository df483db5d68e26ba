"""A client is told which values it did not choose."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.spans import Spans

HEADER = "X-Adjusted-Parameters"
MESSAGES = [{"role": "user", "content": "Hi"}]
MODEL = "mlx-manager/starter"


async def told(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, tuple[float, str]]:
    """What the header says, by parameter."""
    prompt = {"input": "Hi"} if path == "/v1/responses" else {"messages": MESSAGES}
    response = await http.post(path, json={"model": MODEL, **prompt, **body})
    assert response.status_code == 200, response.text
    found = dict[str, tuple[float, str]]()
    for one in filter(None, response.headers.get(HEADER, "").split(", ")):
        name, value, by = one.replace(";by=", "=").split("=")
        found[name] = float(value), by
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_given_all_says_nothing(
    http: httpx.AsyncClient, stream: bool
) -> None:
    asked = {"max_tokens": 5, "temperature": 0, "top_p": 1, "top_k": 0, "stream": stream}
    assert await told(http, "/v1/chat/completions", **asked) == {}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"max_tokens": 10**6, "stop": ["e", "a"]}),
        ("/v1/messages", {"max_tokens": 10**6, "stop_sequences": ["e", "a"]}),
        ("/v1/responses", {"max_output_tokens": 10**6}),
    ],
)
async def test_what_the_context_cut_is_told(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any], stream: bool
) -> None:
    found = await told(http, path, **fields, stream=stream)
    room, by = found["max_tokens"]
    assert by == "context"
    assert 0 < room < 10**6


async def test_what_the_model_s_makers_set_is_told_on_the_span_too(
    http: httpx.AsyncClient, spans: Spans
) -> None:
    response = await http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 4}
    )
    said = response.headers[HEADER].split(", ")
    # The starter's makers want it greedy.
    assert said == ["temperature=0;by=generation_config"]
    chat = next(
        one
        for one in await spans.of_answer(response.json()["id"])
        if "gen_ai.response.id" in (one.attributes or {})
    )
    assert (chat.attributes or {})["mlx.request.adjusted"] == tuple(said)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/v1/responses", {"type": "function", "name": "look", "parameters": {"type": "object"}}),
        ("/v1/messages", {"name": "look", "input_schema": {"type": "object"}}),
    ],
)
async def test_a_tool_that_was_left_out_is_told(
    http: httpx.AsyncClient, path: str, own: dict[str, Any]
) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {"model": MODEL, "input": "Hi"} if path == "/v1/responses" else {"messages": MESSAGES}
    tools = [own, {"type": "web_search_20250305", "name": "web_search"}]
    response = await http.post(path, json={"model": MODEL, **body, limit: 8, "tools": tools})
    assert response.status_code == 200, response.text
    assert "tools[1]=left_out;by=hosted_tool" in response.headers[HEADER].split(", ")
    if path == "/v1/responses":
        assert [tool["name"] for tool in response.json()["tools"]] == ["look"]
