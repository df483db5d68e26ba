"""From chat requests back to bodies of the Responses API, for whoever answers in its words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import UnsupportedParameter
from mlx_manager.wire.openai.bodies import FORMAT_NAME, sampling_fields
from mlx_manager.wire.openai.responses.namespaces import NAMESPACE, joined
from mlx_manager.wire.openai.responses.parameters import LOGPROBS


def response_body(request: ChatRequest) -> dict[str, Any]:
    """Return the body of a response that asks for the same: `response_request` makes the same request of it.

    The request must be a conversation. It is not stored where it is answered: what it goes on from is in its items.
    Raises UnsupportedParameter for what the API has no word for: the other direction takes none of it either, and left
    out it would be another request.
    """
    assert isinstance(request.input, Conversation)
    conversation = request.input
    _check(request, conversation)
    first, *others = conversation.messages
    has_instructions = first.role == "system"
    turns = others if has_instructions else conversation.messages
    asked = sampling_fields(request.sampling)
    body = {
        "model": request.model,
        "instructions": first.content if has_instructions else None,
        "input": [item for turn in turns for item in _items(turn)],
        "store": False,
        "max_output_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "stream": request.stream or None,
        "priority": request.priority,
        "thinking_token_budget": request.sampling.thinking_tokens,
        "include": [LOGPROBS] if asked.pop("logprobs") else None,
        **asked,
        **_reasoning(conversation),
        **_tools(conversation.tools, conversation.tool_choice),
        **_format(request.format, conversation),
    }
    return {name: value for name, value in body.items() if value is not None}


def _check(request: ChatRequest, conversation: Conversation) -> None:
    for is_asked, what, param in (
        (request.choices > 1, "makes one answer", "n"),
        (conversation.is_begun, "goes on with no answer that is begun", "continue_final_message"),
        (
            any(one.name for one in conversation.messages if one.role != "tool"),
            "has no names for who speaks",
            "messages[].name",
        ),
        (
            bool(conversation.template_arguments.keys() - {"reasoning_effort", "verbosity"}),
            "has no variables for a template",
            "chat_template_kwargs",
        ),
    ):
        if is_asked:
            raise UnsupportedParameter(
                f"The Responses API {what}. Leave {param!r} out.", param=param
            )


def _items(message: Message) -> Iterator[dict[str, Any]]:
    """Yield the items that make up one turn: the assistant's are reasoning, text and calls."""
    if message.role == "tool":
        output = {"call_id": message.tool_call_id, "output": message.content, "name": message.name}
        yield _without_none({"type": "function_call_output", **output})
        return
    if message.reasoning is not None:
        thought = [{"type": "reasoning_text", "text": message.reasoning}]
        yield {"type": "reasoning", "summary": [], "content": thought}
    if message.content or not (message.reasoning or message.tool_calls):
        said = {"role": message.role, "content": message.content, "phase": message.phase}
        yield _without_none({"type": "message", **said})
    for call in message.tool_calls:
        yield _call(call)


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
    }


def _reasoning(conversation: Conversation) -> dict[str, Any]:
    effort = conversation.template_arguments.get("reasoning_effort")
    if effort is None and conversation.thinking is not None:
        effort = "medium" if conversation.thinking else "none"
    return {"reasoning": None if effort is None else {"effort": effort}}


def _tools(tools: tuple[Tool, ...], choice: ToolChoice) -> dict[str, Any]:
    if not tools:
        return {}
    mode: Any = choice.mode
    if choice.allowed is not None:
        some = [{"type": "function", "name": name} for name in choice.allowed]
        mode = {"type": "allowed_tools", "mode": choice.mode, "tools": some}
    if choice.name is not None:
        mode = {"type": "function", "name": choice.name}
    return {
        "tools": [
            one
            for name, some in groupby(tools, key=lambda tool: tool.namespace)
            for one in _grouped(name, map(_function, some))
        ],
        "tool_choice": None if mode == "auto" else mode,
        "parallel_tool_calls": None if choice.is_parallel else False,
    }


def _grouped(name: str | None, some: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if name is None:
        yield from some
    else:
        yield {"type": NAMESPACE, "name": name, "tools": list(some)}


def _function(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name.removeprefix(joined(tool.namespace, "") if tool.namespace else ""),
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "strict": tool.is_strict,
    }


def _format(asked: AnswerFormat | None, conversation: Conversation) -> dict[str, Any]:
    verbosity = conversation.template_arguments.get("verbosity")
    text = {} if verbosity is None else {"verbosity": verbosity}
    if asked is not None and asked.kind == "json_schema":
        named = {"name": FORMAT_NAME, "schema": asked.value, "strict": True}
        return {"text": {**text, "format": {"type": "json_schema", **named}}}
    held = {} if asked is None else {"structured_outputs": {asked.kind: asked.value}}
    return {"text": text or None, **held}


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
