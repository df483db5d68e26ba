"""Answers as they leave, field by field: each is what the SDKs' types say, and what these don't name is listed here.

The SDKs themselves read anything and say nothing. Here a number is no string, and a field that nobody has listed fails.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Set
from typing import Any

import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from mlx_manager.mlx_server.app import create_app
from tests.server.test_tools import MODEL, QUESTION, WEATHER
from tests.support.encoders import make_encoder
from tests.support.running import running, settings_for
from tests.support.sdk_types import extras_of

CHAT, TEXT, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
# Ours, and other servers': what the model has thought, under both names.
THOUGHTS = {"reasoning", "reasoning_content"}
OF_MESSAGE = {f"choices[].message.{name}" for name in THOUGHTS}
OF_DELTA = {f"choices[].delta.{name}" for name in THOUGHTS}
# OpenAI's API has it, and its types don't say so; of the tokens of an event they don't name what those of an item have.
OF_RESPONSE = {"store"}
OF_RESPONSE_EVENT = {"response.store", "logprobs[].bytes", "logprobs[].top_logprobs[].bytes"}
ASKED: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 60}
QUESTIONS = {"messages": [{"role": "user", "content": QUESTION}]}
SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {"reasoning_effort": "none"},
    "thinking": {"reasoning_effort": "high"},
    "cut": {"max_tokens": 1},
    "several": {"n": 3, "seed": 1, "temperature": 1},
    "likely": {"logprobs": True, "top_logprobs": 3, "reasoning_effort": "none"},
    "called": {"tools": [WEATHER], "tool_choice": "required"},
    "called twice": {"tools": [WEATHER], "n": 2},
    "formatted": {"response_format": FORMAT, "reasoning_effort": "none"},
}
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Once upon"},
    "several": {"prompt": ["Once upon", "A time"], "n": 2, "seed": 1, "temperature": 1},
    "likely": {"prompt": "Once upon", "logprobs": 2, "max_tokens": 5},
    "best": {"prompt": "Once upon", "best_of": 2, "seed": 1, "temperature": 1},
    "echoed": {"prompt": "Once upon", "echo": True, "max_tokens": 2},
    "scored": {"prompt": "Once upon", "echo": True, "logprobs": 1, "max_tokens": 0},
}
# Of the first token of a prompt OpenAI's API says null, too, whatever its types say.
UNSAID_FIRST = {"choices[].logprobs.token_logprobs[]", "choices[].logprobs.top_logprobs[]"}
# And of a stream's choices that go on.
UNFINISHED = {"choices[].finish_reason"}


def check(
    kind: Any, written: str, extras: Set[str] = frozenset(), unlike: Set[str] = frozenset()
) -> None:
    """Read what was written as a type of the SDK's, strictly.

    Only fields of `unlike` may be other than that says, and only those of `extras` may not be named by it.
    """
    adapter = TypeAdapter[Any](kind)
    found = set(complaints(adapter, written))
    assert found <= unlike, found - unlike
    # As the SDK reads it where something is unlike its type.
    value = kind.construct(**json.loads(written)) if found else adapter.validate_json(written)
    assert extras_of(value) <= extras, extras_of(value) - extras


def complaints(adapter: TypeAdapter[Any], written: str) -> Iterator[str]:
    """The places that are not what the type says."""
    try:
        adapter.validate_json(written, strict=True)
    except ValidationError as error:
        for one in error.errors():
            names = ("[]" if isinstance(part, int) else f".{part}" for part in one["loc"])
            yield "".join(names).removeprefix(".")


async def whole(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.text


async def pieces(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    """The payloads of a stream, without its end mark."""
    frames = await whole(http, path, body | {"stream": True})
    data = [line.removeprefix("data: ") for line in frames.split("\n") if line.startswith("data: ")]
    return [one for one in data if one != "[DONE]"]


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_is_answered_in_the_sdk_s_words(http: httpx.AsyncClient, name: str) -> None:
    check(ChatCompletion, await whole(http, CHAT, ASKED | QUESTIONS | CHATS[name]), OF_MESSAGE)


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_s_chunks_are_in_the_sdk_s_words(http: httpx.AsyncClient, name: str) -> None:
    usage = {"stream_options": {"include_usage": True}}
    chunks = await pieces(http, CHAT, ASKED | QUESTIONS | CHATS[name] | usage)
    for chunk in chunks:
        check(ChatCompletionChunk, chunk, OF_DELTA)
    assert len(chunks) > 2


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_is_completed_in_the_sdk_s_words(http: httpx.AsyncClient, name: str) -> None:
    written = await whole(http, TEXT, ASKED | TEXTS[name])
    check(Completion, written, unlike=UNSAID_FIRST if name == "scored" else set())


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"best"}))
async def test_a_text_s_chunks_are_in_the_sdk_s_words(http: httpx.AsyncClient, name: str) -> None:
    usage = {"stream_options": {"include_usage": True}}
    unlike = UNFINISHED | (UNSAID_FIRST if name == "scored" else set())
    chunks = await pieces(http, TEXT, ASKED | TEXTS[name] | usage)
    for chunk in chunks:
        check(Completion, chunk, unlike=unlike)
    assert len(chunks) > 1


@pytest.mark.parametrize("name", ["plain", "thinking", "called", "likely"])
async def test_a_response_and_its_events_are_in_the_sdk_s_words(
    http: httpx.AsyncClient, name: str
) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 60}
    body = asked | {"input": QUESTION} | FLAT[name]
    check(Response, await whole(http, RESPONSES, body), OF_RESPONSE)
    for event in await pieces(http, RESPONSES, body):
        check(ResponseStreamEvent, event, OF_RESPONSE_EVENT)


async def test_a_response_in_the_background_is_in_the_sdk_s_words(http: httpx.AsyncClient) -> None:
    # Of the second the context is too short for what is asked.
    long = {"model": "test/short", "input": "long " * 100, "max_output_tokens": 60}
    for asked, extras in (
        ({"model": MODEL, "input": QUESTION, "max_output_tokens": 4}, {"adjusted_parameters"}),
        (long, {"error.param", "error.type"}),
    ):
        queued = await whole(http, RESPONSES, asked | {"background": True})
        check(Response, queued, OF_RESPONSE)
        path, done = f"{RESPONSES}/{json.loads(queued)['id']}", queued
        async with asyncio.timeout(30):
            while json.loads(done)["status"] in ("queued", "in_progress"):
                done = (await http.get(path)).text
        check(Response, done, OF_RESPONSE | extras)


def test_the_check_itself_finds_what_is_unlike_a_type_and_what_it_does_not_name() -> None:
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "me"}
    check(Model, json.dumps(model))
    for wrong in ({"created": "1"}, {"object": "thing"}, {"mood": "good"}):
        with pytest.raises(AssertionError):
            check(Model, json.dumps(model | wrong))
    check(Model, json.dumps(model | {"mood": "good", "created": None}), {"mood"}, {"created"})


FLAT: dict[str, dict[str, Any]] = {
    "plain": {"reasoning": {"effort": "none"}},
    "thinking": {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high"}},
    "called": {"tools": [{"type": "function", **WEATHER["function"]}], "tool_choice": "required"},  # type: ignore[dict-item]
    "likely": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
}


@pytest.mark.parametrize("name", ["plain", "thinking", "called"])
async def test_a_message_and_its_events_are_in_the_sdk_s_words(
    http: httpx.AsyncClient, name: str
) -> None:
    look = {"name": "look", "input_schema": SCHEMA}
    more: dict[str, dict[str, Any]] = {
        "plain": {"thinking": {"type": "disabled"}},
        "thinking": {"thinking": {"type": "adaptive"}},
        "called": {"tools": [look], "tool_choice": {"type": "any"}},
    }
    body = ASKED | QUESTIONS | more[name]
    check(Message, await whole(http, MESSAGES, body))
    for event in await pieces(http, MESSAGES, body):
        check(RawMessageStreamEvent, event)
    counted = {"model": MODEL, **QUESTIONS}
    check(MessageTokensCount, await whole(http, f"{MESSAGES}/count_tokens", counted))


async def test_models_are_in_the_sdk_s_words(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    for model in listed["data"]:
        is_starter = model["id"] == "mlx-manager/starter"
        check(Model, json.dumps(model), {"is_demonstration"} if is_starter else frozenset())


async def test_vectors_are_in_the_sdk_s_words(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("encoders")
    make_encoder(folder / "test" / "bert")
    settings = settings_for(tmp_path_factory.mktemp("vectors"), folder)
    with running(create_app(settings)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            asked = {"model": "test/bert", "input": ["the cat", "a dog"]}
            check(CreateEmbeddingResponse, await whole(http, "/v1/embeddings", asked))
            packed = asked | {"encoding_format": "base64"}
            # The SDK unpacks it behind its own type's back.
            written = await whole(http, "/v1/embeddings", packed)
            check(CreateEmbeddingResponse, written, unlike={"data[].embedding"})
            assert all(isinstance(one["embedding"], str) for one in json.loads(written)["data"])
