"""Recorded bodies of the Responses API, sent as they were recorded; the answers are read by the SDK's own types."""

from __future__ import annotations

import json
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.responses import (
    ParsedResponse,
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
    ResponseStreamEvent,
)
from pydantic import TypeAdapter

from tests.conftest import TINY
from tests.server.test_tools import MODEL
from tests.wire.response_calls import STORED_ITEM, STORED_RESPONSE, Trip
from tests.wire.sdk_requests import RECORDED

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
# What a client leaves out, as the API's reference has it.
DEFAULTS: dict[str, Any] = {
    "object": "response",
    "status": "completed",
    "model": MODEL,
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": 200,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 0.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
# Said of one answer, and looked at by itself.
OWN = ("id", "created_at", "completed_at", "output", "usage")


def recorded(name: str, **stored: str) -> dict[str, Any]:
    """A recorded body for the model of this server, with what it refers to by the ids that it has here."""
    text = (RECORDED / f"{name}.json").read_text()
    for there, here in stored.items():
        assert there in text
        text = text.replace(there, here)
    body: dict[str, Any] = json.loads(text)["body"]
    return body | {"model": MODEL}


async def answer(openai: AsyncOpenAI, body: dict[str, Any]) -> Response:
    """The answer to a body, complete: each field of it is one of the SDK's types."""
    response = await openai.post("/responses", body=body, cast_to=Response)
    TypeAdapter(Response).validate_python(response.to_dict(mode="json"), strict=False)
    assert response.id.startswith("resp_")
    assert 0 < response.created_at <= (response.completed_at or 0)
    check_counts(response)
    return response


def check_counts(response: Response) -> None:
    """The counts of tokens add up, and are those of something that was read and something that was written."""
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 <= usage.input_tokens_details.cached_tokens < usage.input_tokens
    assert usage.input_tokens_details.cache_write_tokens == 0
    assert 0 <= usage.output_tokens_details.reasoning_tokens < usage.output_tokens


def rest(response: Response) -> dict[str, Any]:
    """What a response says of its request."""
    found = response.to_dict(mode="json")
    return {name: value for name, value in found.items() if name not in OWN}


def message(response: Response) -> ResponseOutputMessage:
    """The last item, which is a whole message of one text."""
    item = response.output[-1]
    assert isinstance(item, ResponseOutputMessage)
    assert (item.role, item.status) == ("assistant", "completed")
    assert item.id.startswith("msg_")
    [part] = item.content
    assert part.type == "output_text"
    assert part.annotations == []
    assert part.text == response.output_text != ""
    return item


def call(response: Response) -> ResponseFunctionToolCall:
    """The last item, which is a call of the one tool with arguments that are held by its schema."""
    item = response.output[-1]
    assert isinstance(item, ResponseFunctionToolCall)
    assert (item.name, item.status) == ("get_weather", "completed")
    assert (item.id or "").startswith("fc_")
    assert item.call_id.startswith("call_")
    assert [*json.loads(item.arguments)] == ["city"]
    return item


def thought(response: Response) -> ResponseReasoningItem:
    """The first item, which is what the model thought."""
    item = response.output[0]
    assert isinstance(item, ResponseReasoningItem)
    assert (item.status, item.summary) == ("completed", [])
    assert item.id.startswith("rs_")
    assert item.content
    assert item.content[0].text
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    return item


async def events_of(openai: AsyncOpenAI, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, each of which is one of the SDK's types."""
    stream = await openai.post(
        "/responses",
        body=body,
        cast_to=Response,
        stream=True,
        stream_cls=AsyncStream[ResponseStreamEvent],
    )
    events = [event async for event in stream]
    for event in events:
        EVENT.validate_python(event.to_dict(mode="json"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


async def test_a_plain_body_is_answered_in_every_field(openai: AsyncOpenAI) -> None:
    response = await answer(openai, recorded("responses-plain"))
    assert rest(response) == DEFAULTS | {
        "instructions": "Be brief.",
        "metadata": {"topic": "weather"},
        "prompt_cache_key": "key",
        "safety_identifier": "user-1",
        "top_p": 0.9,
        "user": "ann",
    }
    assert len(response.output) == 1
    assert message(response).content[0].to_dict().get("logprobs") == []


async def test_what_a_request_leaves_open_is_told_as_it_was_taken(openai: AsyncOpenAI) -> None:
    async def told(model: str, **fields: Any) -> tuple[float | None, float | None, str | None]:
        asked: dict[str, Any] = {"model": model, "input": "Hi", "max_output_tokens": 2} | fields
        response = await openai.responses.create(**asked)
        assert response.text is not None
        return response.temperature, response.top_p, response.text.verbosity

    # The starter's makers want it greedy; of the other one nobody says anything.
    assert await told(MODEL) == (0.0, 1.0, "medium")
    assert await told(TINY) == (1.0, 1.0, "medium")
    assert await told(TINY, temperature=0.5, top_p=0.25, text={"verbosity": "low"}) == (
        0.5,
        0.25,
        "low",
    )
    assert await told(TINY, extra_body={"verbosity": "high"}) == (1.0, 1.0, "high")


async def test_a_strict_tool_that_is_named_is_called_under_its_schema(openai: AsyncOpenAI) -> None:
    body = recorded("responses-tools")
    response = await answer(openai, body)
    assert rest(response) == DEFAULTS | {
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "tool_choice": body["tool_choice"],
        "tools": body["tools"],
    }
    assert len(response.output) == 1
    assert len(json.loads(call(response).arguments)["city"]) <= 20


async def test_a_parsed_body_is_answered_with_an_object_of_its_class(openai: AsyncOpenAI) -> None:
    body = recorded("responses-parsed")
    response = await answer(openai, body)
    assert rest(response) == DEFAULTS | {
        "store": False,
        "text": body["text"] | {"verbosity": "medium"},
    }
    assert len(response.output) == 1
    message(response)
    trip = Trip.model_validate_json(response.output_text)
    parsed = await openai.responses.parse(
        model=MODEL, input=body["input"], text_format=Trip, temperature=0, store=False
    )
    assert isinstance(parsed, ParsedResponse)
    assert parsed.output_parsed == trip


async def test_turns_of_every_kind_are_read_and_kept(openai: AsyncOpenAI) -> None:
    first = await answer(openai, recorded("responses-plain"))
    stored = message(first)
    body = recorded("responses-turns", **{STORED_ITEM: stored.id})
    response = await answer(openai, body)
    assert rest(response) == DEFAULTS | {"tools": body["tools"]}
    message(response)
    kept = await openai.responses.input_items.list(response.id, order="asc")
    assert [(item.type, getattr(item, "role", None)) for item in kept.data] == [
        ("message", "developer"),
        ("message", "assistant"),
        ("reasoning", None),
        ("message", "assistant"),
        ("function_call", None),
        ("function_call_output", None),
        ("message", "user"),
    ]
    sent = [item.get("id") for item in body["input"]]
    assert [item.id for item, own in zip(kept.data, sent, strict=True) if own] == [
        *filter(None, sent)
    ]
    assert kept.data[1].to_dict()["content"][0]["text"] == first.output_text  # type: ignore[index]


async def test_what_an_assistant_s_message_was_is_stored_and_listed(openai: AsyncOpenAI) -> None:
    said: Any = {"type": "message", "role": "assistant", "content": "I look it up."}
    asked = await openai.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "What is the weather in Bern?"},
            said | {"phase": "commentary"},
            said | {"phase": "final_answer"},
            {"role": "user", "content": "And tomorrow?"},
        ],
        max_output_tokens=4,
        temperature=0,
    )
    kept = (await openai.responses.input_items.list(asked.id, order="asc")).data
    assert [getattr(item, "phase", None) for item in kept] == [
        None,
        "commentary",
        "final_answer",
        None,
    ]
    again = await openai.responses.create(
        model=MODEL,
        input=[
            {"type": "item_reference", "id": str(kept[1].id)},
            {"role": "user", "content": "Well?"},
        ],
        max_output_tokens=4,
        temperature=0,
    )
    [first, _] = (await openai.responses.input_items.list(again.id, order="asc")).data
    assert first.to_dict() == kept[1].to_dict()


async def test_a_stream_goes_on_from_a_stored_response(openai: AsyncOpenAI) -> None:
    first = await answer(openai, recorded("responses-plain"))
    events = await events_of(openai, recorded("responses-streamed", **{STORED_RESPONSE: first.id}))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    response: Response = events[-1].response
    assert rest(response) == DEFAULTS | {
        "instructions": "Be brief.",
        "max_output_tokens": 300,
        "previous_response_id": first.id,
        "reasoning": {"effort": "low", "summary": None},
        "top_logprobs": 2,
    }
    check_counts(response)
    thought(response)
    [part] = message(response).content
    assert part.type == "output_text"
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == part.text
    assert "".join(entry.token for entry in part.logprobs or ()) == part.text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs or ())
    told = [entry.token for event in deltas for entry in event.logprobs]
    assert told == [entry.token for entry in part.logprobs or ()]
    again = await openai.responses.retrieve(response.id, include=["message.output_text.logprobs"])
    assert again.to_dict() == response.to_dict()


async def test_a_body_of_codex_is_answered_by_a_call_and_nothing_is_stored(
    openai: AsyncOpenAI,
) -> None:
    # The answer that is the likeliest. Its tool isn't strict, and the starter model may name another.
    body = recorded("responses-codex") | {"temperature": 0}
    events = await events_of(openai, body)
    response: Response = events[-1].response
    assert rest(response) == DEFAULTS | {
        "instructions": body["instructions"],
        "max_output_tokens": None,
        "prompt_cache_key": body["prompt_cache_key"],
        "reasoning": {"effort": "medium", "summary": None},
        "store": False,
        # Nobody here runs a search.
        "tools": body["tools"][:1],
    }
    assert thought(response).encrypted_content
    found = response.output[-1]
    assert isinstance(found, ResponseFunctionToolCall)
    assert (found.status, type(json.loads(found.arguments))) == ("completed", dict)
    done = [event for event in events if event.type == "response.output_item.done"]
    assert [event.item.id for event in done] == [item.id for item in response.output]
    arguments = [one for one in events if one.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in arguments) == found.arguments
    with pytest.raises(sdk.NotFoundError):
        await openai.responses.retrieve(response.id)
