"""A client is told which values it did not choose."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.conftest import TINY
from tests.support.spans import Spans

HEADER = "X-Adjusted-Parameters"
MESSAGES = [{"role": "user", "content": "Hi"}]
MODEL = "mlx-manager/starter"
CHAT = "/v1/chat/completions"
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "max_tokens=16;by=default"),
        ({"max_tokens": 16}, None),
        ({"max_tokens": 4, "xtc_probability": 0.5}, "xtc_threshold=0.1;by=default"),
        ({"max_tokens": 4, "xtc_probability": 0.5, "xtc_threshold": 0.1}, None),
        ({"max_tokens": 4, "xtc_probability": 0}, None),
        (
            {"xtc_probability": 0.5},
            "max_tokens=16;by=default, xtc_threshold=0.1;by=default",
        ),
    ],
)
async def test_a_value_that_is_the_server_s_own_is_told(
    http: httpx.AsyncClient, fields: dict[str, Any], expected: str | None, stream: bool
) -> None:
    body = {"model": MODEL, "prompt": "Once", "temperature": 0, "stream": stream, **fields}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers.get(HEADER) == expected


async def test_where_the_context_has_less_room_than_the_server_s_own_value_that_is_told(
    http: httpx.AsyncClient,
) -> None:
    read = (await http.post("/v1/tokenize", json={"model": "test/short", "prompt": "a"})).json()
    prompt = read["tokens"] * ((read["max_model_len"] - 5) // read["count"])
    body = {"model": "test/short", "prompt": prompt, "temperature": 0}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    room = read["max_model_len"] - len(prompt)
    assert response.headers[HEADER] == f"max_tokens={room};by=context"


IN_BACKGROUND = {
    "model": MODEL,
    "input": "Hi",
    "background": True,
    "reasoning": {"effort": "high"},
    "max_output_tokens": 4,
}
TOLD = ["temperature=0;by=generation_config", "reasoning_effort=on;by=chat_template"]


async def over(http: httpx.AsyncClient, path: str) -> httpx.Response:
    """What a response in the background is once it is over."""
    async with asyncio.timeout(30):
        while True:
            response = await http.get(path)
            if response.json()["status"] not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.01)


async def test_a_response_in_the_background_tells_it_when_it_is_asked_for(
    http: httpx.AsyncClient, spans: Spans
) -> None:
    queued = await http.post("/v1/responses", json=IN_BACKGROUND)
    # Nobody knows it yet.
    assert HEADER not in queued.headers
    assert "adjusted_parameters" not in queued.json()
    response_id = queued.json()["id"]
    done = await over(http, f"/v1/responses/{response_id}")
    assert done.json()["adjusted_parameters"] == TOLD
    assert done.headers[HEADER] == ", ".join(TOLD)
    cancelled = await http.post(f"/v1/responses/{response_id}/cancel")
    assert cancelled.headers[HEADER] == ", ".join(TOLD)
    [chat] = [
        one
        for one in await spans.of_answer(response_id)
        if "mlx.request.adjusted" in (one.attributes or {})
    ]
    assert (chat.attributes or {})["mlx.request.adjusted"] == tuple(TOLD)


async def test_a_stream_in_the_background_tells_it_when_it_is_known(
    http: httpx.AsyncClient,
) -> None:
    streamed = await http.post("/v1/responses", json=IN_BACKGROUND | {"stream": True})
    frames = streamed.text.split("\n\n")
    told = f": {HEADER}: {', '.join(TOLD)}"
    begun = next(at for at, one in enumerate(frames) if "response.in_progress" in one)
    # A fast machine knows it before the headers are sent.
    assert streamed.headers.get(HEADER) == ", ".join(TOLD) or frames[begun - 1] == told
    assert frames.count(told) <= 1
    payloads = [json.loads(one.split("data: ")[1]) for one in frames if "data: " in one]
    responses = {one["type"]: one["response"] for one in payloads if "response" in one}
    assert "adjusted_parameters" not in responses["response.queued"]
    for name in ("response.in_progress", "response.incomplete"):
        assert responses[name]["adjusted_parameters"] == TOLD
    response_id = responses["response.queued"]["id"]
    again = await http.get(f"/v1/responses/{response_id}", params={"stream": True})
    assert again.headers[HEADER] == ", ".join(TOLD)


async def test_a_response_in_the_background_that_was_given_all_says_nothing(
    http: httpx.AsyncClient,
) -> None:
    body = IN_BACKGROUND | {"reasoning": None, "temperature": 0}
    queued = (await http.post("/v1/responses", json=body)).json()
    done = await over(http, f"/v1/responses/{queued['id']}")
    assert HEADER not in done.headers
    assert "adjusted_parameters" not in done.json()


PNG = "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    ("model", "path", "fields", "expected"),
    [
        # Its template has a switch, and no levels.
        (MODEL, CHAT, {"reasoning_effort": "high"}, "reasoning_effort=on;by=chat_template"),
        (MODEL, CHAT, {"reasoning_effort": "none"}, None),
        (MODEL, CHAT, {"thinking": {"type": "disabled"}}, None),
        (MODEL, CHAT, {"thinking": {"type": "enabled"}}, None),
        (MODEL, "/v1/responses", {"reasoning": {"effort": "low"}}, "reasoning_effort=on;by=chat_template"),
        (MODEL, "/v1/messages", {"output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}},
         "reasoning_effort=on;by=chat_template"),
        # This one's has neither, and its models think nothing.
        (TINY, CHAT, {"reasoning_effort": "high"}, "reasoning_effort=left_out;by=chat_template"),
        (TINY, CHAT, {"reasoning_effort": "none"}, None),
        (TINY, CHAT, {"reasoning": {"enabled": True}}, "thinking=left_out;by=chat_template"),
        (TINY, CHAT, {"reasoning": {"enabled": False}}, None),
        (TINY, "/v1/messages", {"output_config": {"effort": "low"}}, "reasoning_effort=left_out;by=chat_template"),
        # Nobody's has these.
        (MODEL, CHAT, {"verbosity": "low"}, "verbosity=left_out;by=chat_template"),
        (MODEL, CHAT, {"verbosity": "medium"}, None),
        (MODEL, "/v1/responses", {"text": {"verbosity": "high"}}, "verbosity=left_out;by=chat_template"),
        (MODEL, CHAT, {"chat_template_kwargs": {"enable_thinking": True}}, None),
        (MODEL, CHAT, {"chat_template_kwargs": {"enable_thoughts": True}}, "enable_thoughts=left_out;by=chat_template"),
        (MODEL, "/v1/responses", {"reasoning": {"summary": "auto"}}, "reasoning.summary=left_out;by=unheld"),
        (MODEL, CHAT, {"reasoning": {"summary": "concise"}}, "reasoning.summary=left_out;by=unheld"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_template_does_not_read_is_told(
    http: httpx.AsyncClient,
    model: str,
    path: str,
    fields: dict[str, Any],
    expected: str | None,
    stream: bool,
) -> None:
    prompt = {"input": "Hi"} if path == "/v1/responses" else {"messages": MESSAGES}
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {"model": model, "temperature": 0, **prompt, limit: 4, "stream": stream, **fields}
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers.get(HEADER) == expected


PICTURES: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "tool_calls": [CALL]},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [{"type": "image_url", "image_url": {"url": PNG}}],
            },
        ]
    },
    "/v1/messages": {
        "messages": [
            *MESSAGES,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [
                            {
                                "type": "image",
                                "source": {
                                    "type": "base64",
                                    "media_type": "image/png",
                                    "data": "aGk=",
                                },
                            }
                        ],
                    }
                ],
            },
        ]
    },
    "/v1/responses": {
        "input": [
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_image", "image_url": PNG}],
            },
        ]
    },
}


@pytest.mark.parametrize("path", PICTURES)
async def test_a_picture_that_no_model_here_sees_is_told(
    http: httpx.AsyncClient, path: str
) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {"model": MODEL, "temperature": 0, limit: 4, **PICTURES[path]}
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers[HEADER] == "tool_results.media=left_out;by=text_only"


@pytest.mark.parametrize("path", [CHAT, "/v1/tokenize"])
@pytest.mark.parametrize(
    "variables",
    [
        *({name: 1} for name in ("\ud800", "a\r\nX-More: 1", "变量", "a b", "", "1st", "a" * 65)),
        {f"a{number}": 1 for number in range(65)},
    ],
)
async def test_what_is_no_name_of_a_variable_is_refused_and_reaches_no_header(
    http: httpx.AsyncClient, path: str, variables: dict[str, int]
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": MODEL, "messages": messages, "chat_template_kwargs": variables}
    headers = {"Content-Type": "application/json"}
    response = await http.post(path, content=json.dumps(body), headers=headers)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"
    assert "X-More" not in response.headers
