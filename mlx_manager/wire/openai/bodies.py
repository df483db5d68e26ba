"""From chat requests back to OpenAI's bodies, for whoever answers in its words."""

from __future__ import annotations

import json
from typing import Any

from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Sampling,
    Tool,
    ToolChoice,
)

# What an answer's format is called where OpenAI wants a name.
FORMAT_NAME = "answer"
SAME_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "xtc_probability", "xtc_threshold"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"),
)


def chat_body(request: ChatRequest) -> dict[str, Any]:
    """Return the body of a chat completion that asks for the same: `chat_request` makes the same request of it.

    The request must be a conversation. `reasoning_effort` says whether to think where no level was asked for.
    """
    assert isinstance(request.input, Conversation)
    body = {
        "model": request.model,
        "messages": [_message(message) for message in request.input.messages],
        "max_completion_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "stream": request.stream or None,
        "priority": request.priority,
        "n": request.choices if request.choices > 1 else None,
        "continue_final_message": request.input.is_begun or None,
        "thinking_token_budget": request.sampling.thinking_tokens,
        **sampling_fields(request.sampling),
        **_reasoning(request.input),
        **_tools(request.input.tools, request.input.tool_choice),
        **_format(request.format),
    }
    return {name: value for name, value in body.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
            },
        }
        for call in message.tool_calls
    ]
    turn = {
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
        "phase": message.phase,
    }
    return {name: value for name, value in turn.items() if value is not None}


def sampling_fields(asked: Sampling) -> dict[str, Any]:
    """Return how tokens are chosen, in the names that chats and responses share; None for what is left open."""
    return {
        **{name: getattr(asked, name) for name in SAME_NAMES},
        "logit_bias": {str(token): bias for token, bias in asked.logit_bias.items()} or None,
        "ignore_eos": asked.ignore_end or None,
        "logprobs": None if asked.top_logprobs is None else True,
        "top_logprobs": asked.top_logprobs,
    }


def _reasoning(conversation: Conversation) -> dict[str, Any]:
    arguments = dict(conversation.template_arguments)
    effort = arguments.pop("reasoning_effort", None)
    if effort is None and conversation.thinking is not None:
        effort = "medium" if conversation.thinking else "none"
    return {"reasoning_effort": effort, "chat_template_kwargs": arguments or None}


def _tools(tools: tuple[Tool, ...], choice: ToolChoice) -> dict[str, Any]:
    if not tools:
        return {}
    mode: Any = choice.mode
    if choice.allowed is not None:
        some = [{"type": "function", "function": {"name": name}} for name in choice.allowed]
        mode = {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": some}}
    if choice.name is not None:
        mode = {"type": "function", "function": {"name": choice.name}}
    return {
        "tools": [{"type": "function", "function": _function(tool)} for tool in tools],
        "tool_choice": None if mode == "auto" else mode,
        "parallel_tool_calls": None if choice.is_parallel else False,
    }


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.parameters)}
    if tool.description is not None:
        function["description"] = tool.description
    return {**function, "strict": True} if tool.is_strict else function


def _format(asked: AnswerFormat | None) -> dict[str, Any]:
    if asked is None:
        return {}
    if asked.kind == "json_schema":
        named = {"name": FORMAT_NAME, "schema": asked.value, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"structured_outputs": {asked.kind: asked.value}}
