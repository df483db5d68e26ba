"""Tools and reasoning through the real SDK, with the starter model, which really calls and really thinks."""

from __future__ import annotations

import json
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan

from tests.support.spans import Spans

MODEL = "mlx-manager/starter"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
QUESTION = "What is the weather in Bern?"
# The starter's token that begins a call.
CALL_TOKEN = 1532


async def ask(openai: AsyncOpenAI, *messages: Any, **fields: Any) -> Any:
    asked = list(messages) or [{"role": "user", "content": QUESTION}]
    return await openai.chat.completions.create(
        model=MODEL, messages=asked, **{"temperature": 0, "max_tokens": 200, **fields}
    )


async def streamed(openai: AsyncOpenAI, **fields: Any) -> list[Any]:
    stream = await ask(openai, stream=True, **fields)
    return [chunk.choices[0] async for chunk in stream]


def arguments_of(call: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.function.arguments)
    return found


async def test_the_model_calls_a_tool(openai: AsyncOpenAI) -> None:
    response = await ask(openai, tools=[WEATHER])
    (choice,) = response.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert set(arguments_of(call)) == {"city"}
    assert call.id.startswith("call_")


async def test_a_streamed_call_is_the_same_call(openai: AsyncOpenAI) -> None:
    whole = (await ask(openai, tools=[WEATHER])).choices[0].message.tool_calls[0]
    choices = await streamed(openai, tools=[WEATHER])
    pieces = [piece for one in choices for piece in one.delta.tool_calls or ()]
    assert (pieces[0].function.name, pieces[0].type) == ("get_weather", "function")
    assert pieces[0].id
    assert all(piece.id is None for piece in pieces[1:])
    written = "".join(piece.function.arguments for piece in pieces)
    assert written == whole.function.arguments
    assert [one.finish_reason for one in choices if one.finish_reason] == ["tool_calls"]
    assert not any(one.delta.content for one in choices)


async def test_arguments_come_as_they_are_written(openai: AsyncOpenAI) -> None:
    # So long that they are written for many times as long as pieces are gathered for; the grammar sees to it.
    city = " and ".join(f"city number {number}" for number in range(1, 20))
    function = {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": [city]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    tool = {"type": "function", "function": function}
    choices = await streamed(openai, tools=[tool], tool_choice="required", max_tokens=400)
    pieces = [piece for one in choices for piece in one.delta.tool_calls or ()]
    assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"city": city}
    assert len(pieces) > 2


async def test_a_call_and_its_result_can_be_sent_back(openai: AsyncOpenAI) -> None:
    question = {"role": "user", "content": QUESTION}
    message = (await ask(openai, question, tools=[WEATHER])).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 21 C"}
    answer = await ask(
        openai, question, message.model_dump(exclude_none=True), result, tools=[WEATHER]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content


async def test_tools_that_must_not_be_called_are_not_even_told(openai: AsyncOpenAI) -> None:
    without, none = await ask(openai), await ask(openai, tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message.tool_calls is None
    assert none.usage.prompt_tokens == without.usage.prompt_tokens


async def test_a_tool_that_must_be_called_is_called(openai: AsyncOpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    question = {"role": "user", "content": "The weather in Rome"}
    response = await ask(openai, question, tools=[WEATHER], tool_choice=named)
    (call,) = response.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "city" in arguments_of(call)
    required = await ask(openai, question, tools=[WEATHER], tool_choice="required")
    assert required.choices[0].finish_reason == "tool_calls"


async def test_a_function_without_parameters_is_called_without_any(openai: AsyncOpenAI) -> None:
    forced: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
    now: dict[str, Any] = {"name": "get_time", "description": "Tells the time"}
    chat = await ask(openai, tools=[{"type": "function", "function": now}], **forced)
    (call,) = chat.choices[0].message.tool_calls
    assert (call.function.name, arguments_of(call)) == ("get_time", {})
    flat: Any = {"type": "function", **now, "parameters": None, "strict": None}
    response = await openai.responses.create(
        model=MODEL, input=QUESTION, tools=[flat], temperature=0, **forced
    )
    [item] = response.output
    assert item.type == "function_call"
    assert (item.name, json.loads(item.arguments)) == ("get_time", {})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused_by_name(
    openai: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        await ask(openai, **fields)
    assert refusal.value.param == param


async def test_reasoning_is_told_from_the_answer(openai: AsyncOpenAI) -> None:
    question = {"role": "user", "content": "What is prefill?"}
    plain = await ask(openai, question)
    thought = await ask(openai, question, reasoning_effort="medium")
    message = thought.choices[0].message
    assert message.reasoning_content
    assert "think>" not in message.reasoning_content + message.content
    assert message.content == plain.choices[0].message.content
    reasoning = thought.usage.completion_tokens_details.reasoning_tokens
    assert 0 < reasoning < thought.usage.completion_tokens
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0
    assert plain.usage.completion_tokens == thought.usage.completion_tokens - reasoning - BLANK_LINE


# Tokens of the blank line between thoughts and answer, which belong to neither.
BLANK_LINE = 2


async def test_reasoning_and_calls_are_streamed_in_their_order(openai: AsyncOpenAI) -> None:
    choices = await streamed(openai, tools=[WEATHER], reasoning_effort="low")
    kinds = [
        "thought" if getattr(one.delta, "reasoning_content", None) else "call"
        for one in choices
        if one.delta.tool_calls or getattr(one.delta, "reasoning_content", None)
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert {"thought", "call"} == set(kinds)


async def test_a_stop_string_ends_text_and_not_thoughts(openai: AsyncOpenAI) -> None:
    question = {"role": "user", "content": "What is MLX Manager?"}
    fields: dict[str, Any] = {"reasoning_effort": "low", "stop": [" runs"]}
    response = await ask(openai, question, **fields)
    assert (response.choices[0].message.content, response.choices[0].finish_reason) == (
        "MLX Manager",
        "stop",
    )


def named(name: str, phases: list[ReadableSpan]) -> list[ReadableSpan]:
    return [phase for phase in phases if phase.name == name]


async def test_the_trace_has_a_phase_that_says_what_was_found(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    response = await ask(openai, tools=[WEATHER], reasoning_effort="low")
    chat, *phases = await spans.of_answer(response.id)
    [parse], [decode] = named("parse", phases), named("decode", phases)
    assert [event.name for event in parse.events] == [
        "reasoning.began",
        "reasoning.ended",
        "tool_call.began",
        "tool_call.ended",
    ]
    assert parse.events[2].attributes == {"gen_ai.tool.name": "get_weather"}
    assert dict(parse.attributes or {})["mlx.parse.family"] == "hermes"
    assert (chat.attributes or {})["gen_ai.usage.reasoning.output_tokens"]
    assert (parse.start_time or 0) >= (decode.start_time or 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_call_is_text_and_the_trace_says_so(
    openai: AsyncOpenAI, spans: Spans, stream: bool
) -> None:
    # The mark that begins a call, again and again, and never a call behind it.
    marks: dict[str, Any] = {"logit_bias": {str(CALL_TOKEN): 100}, "max_tokens": 3}
    if stream:
        chunks = [one async for one in await ask(openai, tools=[WEATHER], stream=True, **marks)]
        answer_id, ends = chunks[0].id, chunks[-1].choices[0].finish_reason
        text = "".join(one.choices[0].delta.content or "" for one in chunks)
        assert not any(one.choices[0].delta.tool_calls for one in chunks)
    else:
        answer = await ask(openai, tools=[WEATHER], **marks)
        answer_id, ends = answer.id, answer.choices[0].finish_reason
        text = answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None
    assert (text, ends) == ("<tool_call>" * 3, "length")
    [parse] = named("parse", await spans.of_answer(answer_id))
    assert {event.name for event in parse.events} == {"tool_call.malformed"}


async def test_an_answer_of_nothing_but_text_has_no_such_phase(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    response = await ask(openai, tool_choice="auto")
    assert not named("parse", await spans.of_answer(response.id))


async def test_a_tool_name_of_the_model_s_own_making_is_not_recorded(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    greet = {"type": "function", "function": {"name": "zzz"}}
    response = await ask(
        openai, {"role": "user", "content": "Hello"}, tools=[greet], tool_choice="required"
    )
    calls = response.choices[0].message.tool_calls or []
    [parse] = named("parse", await spans.of_answer(response.id))
    names = [
        (event.attributes or {}).get("gen_ai.tool.name")
        for event in parse.events
        if event.name == "tool_call.began"
    ]
    assert len(names) == len(calls)
    assert set(names) <= {None, "zzz"}
    assert (parse.attributes or {})["mlx.parse.held_to"] == "tool_calls"
