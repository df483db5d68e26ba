"""OpenAI's JSON to chat requests and back: pure, no server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from pydantic import ValidationError

from mlx_manager.chat.events import (
    Answer,
    CalledTool,
    ChatEvent,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    Timeline,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    collect,
)
from mlx_manager.chat.request import ChatRequest, Conversation, Message, Origin, ToolCall
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.openai.bodies import chat_body
from mlx_manager.wire.openai.errors import error_body, error_type
from mlx_manager.wire.openai.parameters import HARMLESS, NEUTRAL_VALUES
from mlx_manager.wire.openai.requests import chat_request
from mlx_manager.wire.openai.schema import ChatCompletionBody
from mlx_manager.wire.openai.streams import to_chunks, to_response

ORIGIN = Origin("request-1", "/v1/chat/completions")
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 3}'}}


def request_for(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": list(messages) or [{"role": "user", "content": "Hi"}]}
    return chat_request(ChatCompletionBody.model_validate(body | fields), ORIGIN)


def messages_of(request: ChatRequest) -> tuple[Message, ...]:
    assert isinstance(request.input, Conversation)
    return request.input.messages


def test_earlier_tool_calls_and_their_results_reach_the_template() -> None:
    request = request_for(
        {"role": "user", "content": "Look", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    )
    assert messages_of(request) == (
        Message("user", "Look", name="ann"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "look", {"at": 3}),)),
        Message("tool", "a cat", tool_call_id="c1"),
    )


def test_an_assistant_message_comes_back_as_it_was_given_out() -> None:
    answer = Answer("m", "Hello", "stop", Usage(3, 1))
    given = to_response(answer, request_for(), 5)["choices"][0]["message"]
    assert messages_of(request_for(given)) == (Message("assistant", "Hello"),)


def test_of_a_picture_in_a_result_the_model_is_told_and_the_users_are_refused() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    seen = [{"type": "text", "text": "a.png "}, picture]
    request = request_for(
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": seen},
    )
    result = messages_of(request)[1]
    assert result.content == "a.png [image left out: this model reads text only]"
    assert (result.left_out, request.left_out) == (1, 1)
    with pytest.raises(UnsupportedParameter) as refusal:
        request_for({"role": "user", "content": seen})
    assert refusal.value.param == "messages[0].content[1]"


@pytest.mark.parametrize(
    ("field", "value"), [("audio", {"id": "x"}), ("refusal", "no"), ("mood", "good")]
)
def test_a_field_of_a_message_that_would_be_lost_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        request_for({"role": "user", "content": "Hi", field: value})
    assert refusal.value.param == f"messages[0].{field}"


@pytest.mark.parametrize("arguments", ["{", "[1]", "null"])
def test_tool_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        request_for({"role": "assistant", "tool_calls": [call]})


def placed(path: str, **fields: Any) -> tuple[dict[str, Any], ...]:
    """Messages that have more fields at a path of the tables: in a message, a part of one, a call or its function."""
    part, call = {"type": "text", "text": "Hi"}, CALL
    said: dict[str, Any] = {"role": "assistant"}
    match path:
        case "messages[].":
            said |= fields
        case "messages[].content[].":
            part = part | fields
        case "messages[].tool_calls[].":
            call = CALL | fields
        case "messages[].tool_calls[].function.":
            call = CALL | {"function": {**CALL["function"], **fields}}  # type: ignore[dict-item]
    asked = {"role": "user", "content": [{"type": "text", "text": "Look"}]}
    return asked, {"content": [part], "tool_calls": [call]} | said


def with_field(name: str, value: Any) -> ChatRequest:
    """A request with a field of the tables."""
    path, _, field = name.rpartition(".")
    # Calls stand in the way of a field that says that there are none.
    if field == "tool_calls":
        return request_for({"role": "assistant", "content": "Hi", field: value})
    fields = {field: value} if not path else {}
    return request_for(*placed(f"{path}.", **{field: value}), **fields)


def without(name: str) -> ChatRequest:
    """The same without the field."""
    if name.endswith(".tool_calls"):
        return request_for({"role": "assistant", "content": "Hi"})
    return request_for(*placed(""))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in NEUTRAL_VALUES.items() for value in (None, *values)],
)
def test_a_value_that_means_not_used_changes_nothing(name: str, value: Any) -> None:
    assert with_field(name, value) == without(name)


@pytest.mark.parametrize("name", sorted(set(NEUTRAL_VALUES) - {"messages[].tool_calls"}))
def test_any_other_value_of_it_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        with_field(name, "something else")
    assert refusal.value.param == name.replace("messages[]", "messages[1]")


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_can_not_change_an_answer_is_accepted_whatever_it_says(name: str) -> None:
    assert with_field(name, {"any": ["thing"]}) == without(name)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "messages[].",
        "messages[].content[].",
        "messages[].tool_calls[].",
        "messages[].tool_calls[].function.",
    ],
)
def test_a_field_that_nobody_knows_is_refused_by_its_path(path: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        with_field(f"{path}foo", 1)
    place = path.replace("messages[]", "messages[1]").replace("[].", "[0].")
    assert refusal.value.param == f"{place}foo"
    assert refusal.value.message == f"Unknown parameter '{place}foo'. Leave it out."


def test_what_clients_keep_beside_an_assistant_s_message_comes_back_with_it() -> None:
    function = CALL["function"] | {"parsed_arguments": {"at": 3}}  # type: ignore[operator]
    kept = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "parsed": None,
        "tool_calls": [CALL | {"index": 0, "function": function}],
        "reasoning": "Let me look.",
        "reasoning_content": "Let me look.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Let me look.", "index": 0}],
    }
    called = Message("assistant", "", tool_calls=(ToolCall("c1", "look", {"at": 3}),))
    assert messages_of(request_for(kept)) == (replace(called, reasoning="Let me look."),)


def test_what_an_assistant_s_message_was_is_handed_on_and_comes_back() -> None:
    request = request_for(
        {"role": "assistant", "content": "I look.", "phase": "commentary"},
        {"role": "user", "content": "And?"},
    )
    assert [one.phase for one in messages_of(request)] == ["commentary", None]
    assert request_for(**chat_body(request)).input == request.input


@pytest.mark.parametrize(
    "pieces",
    [
        {"reasoning_details": [{"type": "reasoning.text", "text": "Let me "},
                               {"type": "reasoning.encrypted", "data": "c2VjcmV0"},
                               {"type": "reasoning.summary", "summary": "look."}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Let me look.", "signature": "x"},
                             {"type": "redacted_thinking", "data": "c2VjcmV0"}]},
    ],
)  # fmt: skip
def test_thoughts_in_pieces_are_read_where_they_stand_nowhere_else(pieces: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "A cat.", **pieces}
    assert messages_of(request_for(said))[0].reasoning == "Let me look."
    assert messages_of(request_for(said | {"reasoning": "Hm."}))[0].reasoning == "Hm."


def test_an_answer_is_held_to_its_schema_whether_that_is_strict_or_not() -> None:
    # OpenAI's strict mode would refuse this one, which allows members that it doesn't name.
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for strict in (None, False, True):
        named = {"name": "n", "schema": schema, "strict": strict}
        asked = request_for(response_format={"type": "json_schema", "json_schema": named})
        assert asked.format is not None
        assert (asked.format.kind, asked.format.value) == ("json_schema", schema)


def test_true_is_not_taken_for_one() -> None:
    with pytest.raises(ValidationError):
        request_for(n=True)


def test_temperature_zero_stays_zero() -> None:
    assert request_for(temperature=0).sampling.temperature == 0
    assert request_for().sampling.temperature is None


def test_minus_one_switches_top_k_off_as_zero_does() -> None:
    assert request_for(top_k=-1).sampling.top_k == request_for(top_k=0).sampling.top_k == 0


@pytest.mark.parametrize(
    "fields", [{"seed": 2**63}, {"stop": [""]}, {"max_tokens": -1}, {"messages": "Hi"}]
)
def test_values_out_of_range_do_not_validate(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request_for(**fields)


async def events_of(*texts: str) -> AsyncGenerator[ChatEvent, None]:
    yield Started("m", Timeline())
    for text in texts:
        yield TextDelta(text)
    yield Finished("stop", Usage(3, len(texts)))


def decoded(chunk: bytes) -> list[Any]:
    lines = chunk.decode().split("\n\n")[:-1]
    payloads = [line.removeprefix("data: ") for line in lines]
    return [None if payload == "[DONE]" else json.loads(payload) for payload in payloads]


async def test_text_of_every_kind_survives_the_frames() -> None:
    texts = (
        '"quoted" \\ /',
        "line\nbreak\r\n",
        "日本語 😀",
        "\x00\x1b",
        "data: [DONE]\n\n",
        "</s>",
    )
    chunks = [chunk async for chunk in to_chunks(events_of(*texts), request_for(), 5, False)]
    for text, chunk in zip(texts, chunks[1:-1], strict=True):
        [event] = decoded(chunk)
        assert event["choices"] == [
            {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        ]
        assert (event["id"], event["created"]) == ("chatcmpl-request-1", 5)
    assert decoded(chunks[-1])[-1] is None


THOUGHT_AND_CALLED: tuple[ChatEvent, ...] = (
    Started("m", Timeline()),
    ReasoningDelta("Let me"),
    ReasoningDelta(" look."),
    ToolCallStarted(0, "c0", "look"),
    ToolCallDelta(0, '{"at":'),
    ToolCallDelta(0, " 3}"),
    ToolCallStarted(1, "c1", "wait"),
    ToolCallDelta(1, "{}"),
    Finished("tool_calls", Usage(3, 9, reasoning_tokens=4)),
)


async def replayed(*events: ChatEvent) -> AsyncGenerator[ChatEvent, None]:
    for event in events:
        yield event


async def test_reasoning_and_calls_are_streamed_as_openai_streams_them() -> None:
    stream = to_chunks(replayed(*THOUGHT_AND_CALLED), request_for(), 5, False)
    chunks = [event for chunk in [chunk async for chunk in stream] for event in decoded(chunk)]
    first, *deltas, end, done = [event and event["choices"][0] for event in chunks]
    assert first["delta"]["role"] == "assistant"
    assert [delta["delta"] for delta in deltas] == [
        {"reasoning_content": "Let me", "reasoning": "Let me"},
        {"reasoning_content": " look.", "reasoning": " look."},
        *started_call(0, "look"),
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": " 3}"}}]},
        *started_call(1, "wait"),
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    assert (end["delta"], end["finish_reason"], done) == ({}, "tool_calls", None)


def started_call(index: int, name: str) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": ""}
    call = {"index": index, "id": f"c{index}", "type": "function", "function": function}
    return [{"tool_calls": [call]}]


async def test_the_same_events_make_the_whole_message() -> None:
    answer = await collect(replayed(*THOUGHT_AND_CALLED))
    assert answer.tool_calls == (
        CalledTool("c0", "look", '{"at": 3}'),
        CalledTool("c1", "wait", "{}"),
    )
    response = to_response(answer, request_for(), 5)
    message = response["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Let me look.")
    assert message["tool_calls"][0] == CALL | {"id": "c0"}
    assert response["choices"][0]["finish_reason"] == "tool_calls"
    usage = response["usage"]
    of_answer, of_prompt = usage["completion_tokens_details"], usage["prompt_tokens_details"]
    assert of_answer == {
        "reasoning_tokens": 4,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
        "text_tokens": usage["completion_tokens"] - 4,
    }
    assert of_prompt == {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "audio_tokens": 0,
        "image_tokens": 0,
        "text_tokens": usage["prompt_tokens"],
    }
    assert CompletionTokensDetails.model_fields.keys() == of_answer.keys()
    assert PromptTokensDetails.model_fields.keys() == of_prompt.keys()


async def test_every_chunk_names_its_usage_when_usage_is_asked_for() -> None:
    chunks = [chunk async for chunk in to_chunks(events_of("a"), request_for(), 5, True)]
    *others, last, _done = [event for chunk in chunks for event in decoded(chunk)]
    assert all(event["usage"] is None for event in others)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "server_error"),
    ],
)
def test_an_error_has_the_type_that_goes_with_its_status(status: int, kind: str) -> None:
    assert error_type(status) == kind
    body = error_body("m", status=status, code="c", param=None, request_id="r")
    assert set(body["error"]) == {"message", "type", "param", "code", "request_id"}


def test_what_a_chat_is_to_be_kept_for_is_told_to_be_left_out() -> None:
    assert [unheld_of(store=store) for store in (True, False, None)] == [("store",), (), ()]


def unheld_of(**fields: Any) -> tuple[str, ...]:
    asked = request_for(**fields).input
    assert isinstance(asked, Conversation)
    return asked.unheld
