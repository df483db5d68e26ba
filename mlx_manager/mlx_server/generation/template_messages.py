"""Messages as the chat template of a family wants them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from mlx_manager.chat.request import Message, ToolCall
from mlx_manager.mlx_server.families.family import Family
from mlx_manager.mlx_server.families.written import written
from mlx_manager.mlx_server.generation.call_ids import (
    with_ids_of_length,
    with_names,
    with_tools_in_ids,
)
from mlx_manager.mlx_server.generation.call_places import CallPlace
from mlx_manager.mlx_server.generation.call_text import with_all_as_text, with_calls_as_text

EXAMPLE = ToolCall("", "function_name", {"argument_name": "value"})


def template_messages(
    messages: Iterable[Message], family: Family, place: CallPlace = "own"
) -> list[dict[str, Any]]:
    """Return messages with the names, ids and order that a template of `family` knows, and calls in their place."""
    messages = tuple(with_names(messages))
    if place == "calls_as_text":
        messages = tuple(with_calls_as_text(messages, family))
    elif place == "all_as_text":
        messages = tuple(with_all_as_text(messages, family))
    if family.call_ids_name_tools:
        messages = tuple(with_tools_in_ids(messages))
    if family.call_id_length is not None:
        messages = tuple(with_ids_of_length(messages, family.call_id_length))
    if family.one_call_a_message or place == "one_a_message":
        messages = tuple(_with_one_call_each(messages))
    return [_template_message(message, family) for message in messages]


def with_instructions(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], family: Family
) -> list[dict[str, Any]]:
    """Return the messages with the tools in the instructions, for a model whose template has no place for any."""
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = written([EXAMPLE], family.written_form)
    text = family.instructions.format(tools=described, call=example)
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _template_message(message: Message, family: Family) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        # The three names that templates give it.
        turn["reasoning_content"] = turn["reasoning"] = turn["thinking"] = message.reasoning
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_template_call(call, family) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _template_call(call: ToolCall, family: Family) -> dict[str, Any]:
    arguments: Any = dict(call.arguments)
    if family.arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _with_one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield the same with a message for each call, before its result; what was said beside calls comes first."""
    at = 0
    while at < len(messages):
        message = messages[at]
        results = list(takewhile(lambda one: one.role == "tool", messages[at + 1 :]))
        at += 1
        if message.tool_calls and message.content and message.reasoning:
            # One of them would have no place.
            yield replace(message, tool_calls=(), reasoning=None)
            message = replace(message, content="")
        if len(message.tool_calls) < 2:
            yield message
        else:
            at += len(results)
            yield from _one_by_one(message, results)


def _one_by_one(message: Message, results: list[Message]) -> Iterator[Message]:
    for number, call in enumerate(message.tool_calls):
        own = [one for one in results if one.tool_call_id == call.id]
        yield (
            replace(message, tool_calls=(call,))
            if number == 0
            else Message("assistant", "", tool_calls=(call,))
        )
        yield from own
        results = [one for one in results if one not in own]
    yield from results
