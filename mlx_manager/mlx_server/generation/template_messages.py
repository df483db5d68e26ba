"""Messages as the chat template of a family wants them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mlx_manager.chat.request import Message, ToolCall
from mlx_manager.mlx_server.families.family import Family
from mlx_manager.mlx_server.families.written import written
from mlx_manager.mlx_server.generation.call_ids import (
    with_ids_of_length,
    with_names,
    with_tools_in_ids,
)
from mlx_manager.mlx_server.generation.call_order import (
    with_empty_answers,
    with_one_call_each,
    with_text_apart,
    with_user_in_results,
)
from mlx_manager.mlx_server.generation.call_text import with_all_as_text, with_calls_as_text
from mlx_manager.mlx_server.generation.telling import Telling

PLAIN = Telling()
EXAMPLE = ToolCall("", "function_name", {"argument_name": "value"})


def template_messages(
    messages: Iterable[Message], family: Family, telling: Telling = PLAIN
) -> list[dict[str, Any]]:
    """Return messages with the names, ids and order that a template of `family` knows, told of calls as it wants."""
    messages = tuple(with_names(messages))
    match telling.place:
        case "calls_as_text":
            messages = tuple(with_calls_as_text(messages, family))
        case "all_as_text":
            messages = tuple(with_all_as_text(messages, family))
    if family.call_ids_name_tools:
        messages = tuple(with_tools_in_ids(messages))
    if family.call_id_length is not None:
        messages = tuple(with_ids_of_length(messages, family.call_id_length))
    messages = tuple(_ordered(messages, family, telling))
    return [_template_message(message, telling) for message in messages]


def _ordered(messages: Sequence[Message], family: Family, telling: Telling) -> Iterable[Message]:
    # Harmony's templates say what stands beside calls as thoughts, for as long as those are kept.
    if telling.is_apart and not family.in_messages:
        messages = tuple(with_text_apart(messages))
    if family.one_call_a_message or telling.place == "one_a_message":
        messages = tuple(with_one_call_each(messages))
    match telling.next_user:
        case "behind_an_answer":
            return with_empty_answers(messages)
        case "in_the_result":
            return with_user_in_results(messages)
    return messages


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


def _template_message(message: Message, telling: Telling) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        # The three names that templates give it.
        turn["reasoning_content"] = turn["reasoning"] = turn["thinking"] = message.reasoning
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_template_call(call, telling) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _template_call(call: ToolCall, telling: Telling) -> dict[str, Any]:
    arguments: Any = dict(call.arguments)
    if telling.arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
