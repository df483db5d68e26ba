"""What Anthropic's Messages API promises: messages whole and streamed, tools, counting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mlx_manager.conformance.check import Check
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    COUNT,
    MESSAGES,
    Event,
    NotApplicable,
    Subject,
    asking,
    block_text,
    expect,
    unless_unsupported,
    whole,
)
from mlx_manager.conformance.words import (
    COUNT_TO_TEN,
    PLACE_SCHEMA,
    QUESTION,
    USED,
    WEATHER_TOOL,
    check_arguments,
    check_place,
)

ENDS = ("end_turn", "max_tokens")
FORCED: dict[str, Any] = {
    "tools": [WEATHER_TOOL],
    "tool_choice": {"type": "any"},
    "max_tokens": 200,
}


async def message_whole(subject: Subject) -> None:
    """A message has an id, blocks of content, a reason for its end and its tokens."""
    answer = await subject.message(COUNT_TO_TEN)
    expect((answer["type"], answer["role"]) == ("message", "assistant"), "type or role")
    expect(bool(answer["id"]) and answer["model"] == subject.model, "id or model")
    expect(answer["stop_reason"] in ENDS, f"stop_reason is {answer['stop_reason']!r}")
    expect(answer["usage"]["output_tokens"] > 0, f"usage is {answer['usage']}")


async def message_streamed(subject: Subject) -> None:
    """A stream's events come in their order and say the same as the whole message."""
    events = await subject.message_events(COUNT_TO_TEN)
    check_order(events)
    pieces = [event.json["delta"] for event in events if event.name == "content_block_delta"]
    text = "".join(piece["text"] for piece in pieces if piece["type"] == "text_delta")
    answer = await subject.message(COUNT_TO_TEN)
    expect(text == block_text(answer), "the stream says something else")
    end = next(event.json for event in events if event.name == "message_delta")
    expect(end["delta"]["stop_reason"] == answer["stop_reason"], f"it ends with {end['delta']}")
    expect(end["usage"]["output_tokens"] == answer["usage"]["output_tokens"], "other tokens")


def check_order(events: list[Event]) -> None:
    """Raise Broken unless the events come as Anthropic's API sends them; pings may be anywhere behind the first."""
    for event in events:
        expect(event.json["type"] == event.name, f"event {event.name!r} has another type")
    names = [event.name for event in events if event.name != "ping"]
    expect(names[:1] == ["message_start"], f"the stream begins with {names[:1]}")
    expect(names[-2:] == ["message_delta", "message_stop"], f"the stream ends with {names[-2:]}")
    index, is_open = -1, False
    for event in (event for event in events if event.name.startswith("content_block")):
        is_start = event.name == "content_block_start"
        index += is_start
        expect(is_open != is_start, f"{event.name} at a block that is not {is_open}")
        expect(event.json["index"] == index, f"{event.name} has index {event.json['index']}")
        is_open = event.name != "content_block_stop"
    expect(not is_open, "a block is not closed")


async def stop_sequence(subject: Subject) -> None:
    """A stop sequence ends the message before it and is named."""
    text = block_text(await subject.message(COUNT_TO_TEN))
    if len(text) < 6:
        raise NotApplicable(f"the model's answer is too short to be stopped: {text!r}")
    word = text[len(text) // 2 : len(text) // 2 + 3]
    if not word.strip():
        raise NotApplicable("the answer has no words to stop at")
    answer = await subject.message(COUNT_TO_TEN, stop_sequences=[word])
    expect(block_text(answer) == text[: text.index(word)], f"it says {block_text(answer)!r}")
    named = (answer["stop_reason"], answer["stop_sequence"])
    expect(named == ("stop_sequence", word), f"it ends with {named}")


async def tool_whole(subject: Subject) -> None:
    """`any` makes a block of tool use with an object as input."""
    asked = asking(QUESTION, **FORCED)
    response = unless_unsupported(await subject.post(MESSAGES, asked, ANTHROPIC_HEADERS))
    answer = whole(response.json())
    expect(answer["stop_reason"] == "tool_use", f"stop_reason is {answer['stop_reason']!r}")
    use = next(block for block in answer["content"] if block["type"] == "tool_use")
    expect(use["name"] == "get_weather" and bool(use["id"]), f"the block is {use}")
    check_arguments(json.dumps(use["input"]))


async def tool_streamed(subject: Subject) -> None:
    """A streamed tool use has its input as JSON in pieces."""
    asked = asking(QUESTION, **FORCED)
    whole(unless_unsupported(await subject.post(MESSAGES, asked, ANTHROPIC_HEADERS)).json())
    events = await subject.message_events(QUESTION, **FORCED)
    check_order(events)
    check_arguments(next(_inputs(events)))


def _inputs(events: list[Event]) -> Iterator[str]:
    """Yield the input of each tool use, as it was written."""
    starts = [event.json for event in events if event.name == "content_block_start"]
    deltas = [event.json for event in events if event.name == "content_block_delta"]
    for start in starts:
        if start["content_block"]["type"] == "tool_use":
            own = [one["delta"] for one in deltas if one["index"] == start["index"]]
            yield "".join(piece["partial_json"] for piece in own)


async def tool_named(subject: Subject) -> None:
    """The one `tool` is the one that is called."""
    asked = asking(QUESTION, **{**FORCED, "tool_choice": {"type": "tool", "name": "get_weather"}})
    response = unless_unsupported(await subject.post(MESSAGES, asked, ANTHROPIC_HEADERS))
    answer = whole(response.json())
    names = [block["name"] for block in answer["content"] if block["type"] == "tool_use"]
    expect(set(names) == {"get_weather"}, f"it calls {names}")


async def tool_round_trip(subject: Subject) -> None:
    """A tool use and its result can be sent back, and are answered."""
    asked = asking("", messages=USED, tools=[WEATHER_TOOL])
    answer = await subject.answer(MESSAGES, asked, ANTHROPIC_HEADERS)
    expect(answer["stop_reason"] in (*ENDS, "tool_use"), f"it ends with {answer['stop_reason']!r}")


async def counted(subject: Subject) -> None:
    """`count_tokens` says what the message's usage says."""
    prompt = {"messages": [{"role": "user", "content": QUESTION}], "tools": [WEATHER_TOOL]}
    counted = (await subject.answer(COUNT, prompt, ANTHROPIC_HEADERS))["input_tokens"]
    usage = (await subject.message(QUESTION, tools=[WEATHER_TOOL]))["usage"]
    used = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    expect(counted == used, f"{counted} tokens are counted, and {used} were read")


async def message_format(subject: Subject) -> None:
    """`output_config` holds an answer to a JSON schema."""
    held = {"format": {"type": "json_schema", "schema": PLACE_SCHEMA}}
    thinking = {"type": "disabled"}
    fields: dict[str, Any] = {"output_config": held, "thinking": thinking, "max_tokens": 200}
    check_place(block_text(await subject.message("Which place?", **fields)))


MESSAGE_CHECKS = (
    Check("messages", "whole", message_whole),
    Check("messages", "streamed, in order", message_streamed),
    Check("messages", "stop_sequences", stop_sequence),
    Check("messages", "tools whole", tool_whole),
    Check("messages", "tools streamed", tool_streamed),
    Check("messages", "tool_choice: tool", tool_named),
    Check("messages", "tool round trip", tool_round_trip),
    Check("messages", "count_tokens", counted),
    Check("messages", "output_config.format", message_format),
)
