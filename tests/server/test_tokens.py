"""`/v1/tokenize` and `/v1/detokenize` say what a model reads: the same as the usage of an answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from opentelemetry.trace import SpanKind

from mlx_manager.mlx_server.audit.search import RequestFilter, search
from tests.conftest import TINY
from tests.support.running import RunningServer, eventually
from tests.support.spans import Spans

STARTER = "mlx-manager/starter"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TURNS: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Bern?"},
]


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    some = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": some}}


async def tokenized(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/tokenize", json={"model": STARTER} | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def detokenized(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/detokenize", json={"model": STARTER} | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_text_has_the_tokens_that_a_completion_reads(
    http: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    told = await tokenized(http, model=TINY, prompt="Once upon a time")
    answer = await openai.completions.create(model=TINY, prompt="Once upon a time", max_tokens=1)
    assert answer.usage is not None
    assert told["count"] == len(told["tokens"]) == answer.usage.prompt_tokens
    assert told["token_strs"] is None
    as_ids = await openai.completions.create(
        model=TINY, prompt=told["tokens"], max_tokens=1, extra_body={"echo": True}
    )
    assert as_ids.choices[0].text.startswith("Once upon a time")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": allowed("get_weather")},
        {"tools": [WEATHER], "tool_choice": allowed("get_weather", mode="required")},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
async def test_messages_have_the_tokens_that_a_chat_is_answered_from(
    http: httpx.AsyncClient, openai: AsyncOpenAI, fields: dict[str, Any]
) -> None:
    told = await tokenized(http, messages=TURNS, **fields)
    answer = await openai.chat.completions.create(
        model=STARTER, messages=TURNS, max_tokens=1, extra_body=fields
    )
    assert answer.usage is not None
    assert told["count"] == answer.usage.prompt_tokens
    text = (await detokenized(http, tokens=told["tokens"]))["prompt"]
    assert "What is the weather in Bern?" in text
    assert ("get_weather" in text) == ("tools" in fields and fields.get("tool_choice") != "none")


async def test_the_body_of_a_chat_can_be_sent_as_it_is(http: httpx.AsyncClient) -> None:
    chat = {"messages": TURNS, "max_tokens": 5, "temperature": 0.5, "stream": True, "user": "me"}
    chat |= {"stream_options": {"include_usage": True}, "seed": 3, "n": 1}
    whole = await tokenized(http, **chat)
    assert whole == await tokenized(http, messages=TURNS)


async def test_pieces_are_the_vocabularys_and_as_many_as_tokens(http: httpx.AsyncClient) -> None:
    told = await tokenized(http, prompt="weather in Bern", return_token_strs=True)
    assert len(told["token_strs"]) == told["count"] > 0
    assert all(isinstance(piece, str) and piece for piece in told["token_strs"])
    assert told["max_model_len"] > 0


async def test_tokens_become_the_text_again_with_special_ones_or_without(
    http: httpx.AsyncClient,
) -> None:
    text = "Ångström 日本 😀 \n\tweather"
    told = await tokenized(http, prompt=text, add_special_tokens=False)
    assert await detokenized(http, tokens=told["tokens"]) == {"prompt": text, "text": text}
    marked = (await tokenized(http, messages=TURNS))["tokens"]
    whole = (await detokenized(http, tokens=marked))["text"]
    plain = (await detokenized(http, tokens=marked, skip_special_tokens=True))["text"]
    assert len(plain) < len(whole)
    assert "weather in Bern" in plain
    assert await detokenized(http, tokens=[]) == {"prompt": "", "text": ""}


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("tokenize", {}, "prompt", "invalid_request"),
        ("tokenize", {"prompt": "a", "messages": TURNS}, "prompt", "invalid_request"),
        ("tokenize", {"prompt": ["a"]}, "prompt", "invalid_request"),
        ("tokenize", {"prompt": "a", "tools": [WEATHER]}, "tools", "invalid_request"),
        ("tokenize", {"messages": TURNS, "add_special_tokens": True}, "add_special_tokens",
         "invalid_request"),
        ("tokenize", {"messages": TURNS, "add_generation_prompt": False}, "add_generation_prompt",
         "unsupported_parameter"),
        ("tokenize", {"prompt": "a", "nonsense": 1}, "nonsense", "unsupported_parameter"),
        ("tokenize", {"messages": TURNS, "tools": [WEATHER], "tool_choice": allowed("get_time")},
         "tool_choice", "invalid_request"),
        ("tokenize", {"prompt": "\ud800"}, None, "invalid_request"),
        ("tokenize", {"prompt": "a", "model": "no/such"}, "model", "model_not_found"),
        ("detokenize", {"tokens": [5, 10**6]}, "tokens", "invalid_request"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_request"),
        ("detokenize", {"tokens": [5], "nonsense": 1}, "nonsense", "invalid_request"),
        ("detokenize", {"tokens": [5], "model": "no/such"}, "model", "model_not_found"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_by_name(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str | None, code: str
) -> None:
    # Not by `json`, which would not send half a surrogate pair.
    content = json.dumps({"model": STARTER} | body)
    headers = {"Content-Type": "application/json"}
    response = await http.post(f"/v1/{path}", content=content, headers=headers)
    error = response.json()["error"]
    assert response.status_code == (404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"]) == (param, code)
    assert error["request_id"] == response.headers["x-request-id"]


async def test_a_model_without_a_template_takes_texts_and_no_messages(
    http: httpx.AsyncClient,
) -> None:
    assert (await tokenized(http, model="test/plain", prompt="Once"))["count"] > 0
    refused = await http.post("/v1/tokenize", json={"model": "test/plain", "messages": TURNS})
    assert refused.status_code == 400
    assert "no chat template" in refused.json()["error"]["message"]


async def test_a_request_is_audited_and_traced_and_says_nothing_of_its_text(
    http: httpx.AsyncClient, server: RunningServer, spans: Spans
) -> None:
    response = await http.post(
        "/v1/tokenize", json={"model": STARTER, "prompt": "a secret of mine"}
    )
    request_id = response.headers["x-request-id"]
    await eventually(lambda: bool(server.audited(request_id)))
    async with server.state.database.sessions() as session:
        [row] = await search(session, RequestFilter(request_id=request_id), 10)
    assert (row.endpoint, row.operation, row.outcome) == ("/v1/tokenize", None, "completed")
    assert (row.model, row.status) == (STARTER, 200)
    await eventually(lambda: bool(spans.named("POST /v1/tokenize")))
    [span] = [one for one in spans.of_kind(SpanKind.SERVER) if one.name == "POST /v1/tokenize"]
    assert (span.attributes or {})["http.route"] == "/v1/tokenize"
    assert "a secret of mine" not in spans.text()


async def test_it_takes_a_tokenizer_and_no_weights(
    http: httpx.AsyncClient, server: RunningServer
) -> None:
    before = {one.files.id for one in server.pool.residents}
    assert (await tokenized(http, model="test/short", prompt="Once"))["count"] > 0
    assert {one.files.id for one in server.pool.residents} == before
