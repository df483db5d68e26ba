"""From chat requests back to Anthropic's bodies, for whoever answers in its words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mlx_manager.chat.request import ChatRequest, Conversation, Message, Sampling, Tool, ToolChoice
from mlx_manager.errors import UnsupportedParameter
from mlx_manager.wire.signature import Signer

# Anthropic's API wants to be told; others take as many as there is room for.
MAX_TOKENS = 4096
LEAST_BUDGET = 1024
KINDS = {"auto": "auto", "required": "any", "none": "none"}


def message_body(request: ChatRequest, signer: Signer) -> dict[str, Any]:
    """Return the body of a message that asks for the same: `message_request` makes the same request of it.

    The request must be a conversation; its thoughts are signed by `signer`. What was commentary and what a final answer
    it can't say. Raises UnsupportedParameter for what
    Anthropic's API has no word for.
    """
    assert isinstance(request.input, Conversation)
    conversation, asked = request.input, request.sampling
    _check(request)
    first, *others = conversation.messages
    turns = others if first.role == "system" else conversation.messages
    body = {
        "model": request.model,
        "max_tokens": MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        "system": first.content if first.role == "system" else None,
        "messages": [_turn(message, signer) for message in turns],
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "stop_sequences": list(request.stop) or None,
        "stream": request.stream or None,
        "priority": request.priority,
        "output_config": _output(request) or None,
        "thinking": _thinking(conversation.thinking, asked.thinking_tokens),
        **_tools(conversation.tools, conversation.tool_choice),
    }
    return {name: value for name, value in body.items() if value is not None}


def _check(request: ChatRequest) -> None:
    plain = replace(
        request.sampling, temperature=None, top_p=None, top_k=None, thinking_tokens=None
    )
    if plain != Sampling():
        raise UnsupportedParameter(
            "Anthropic's API takes 'temperature', 'top_p' and 'top_k'. Leave other ways of sampling out.",
            param="temperature",
        )
    budget = request.sampling.thinking_tokens
    if budget is not None and budget < LEAST_BUDGET:
        raise UnsupportedParameter(
            f"Anthropic's API takes no budget of thoughts below {LEAST_BUDGET} tokens, and this is {budget}. Raise it.",
            param="thinking_token_budget",
        )
    assert isinstance(request.input, Conversation)
    if request.input.tool_choice.allowed is not None:
        raise UnsupportedParameter(
            "Anthropic's API has no way to allow only some of the tools. Send those alone.",
            param="tool_choice",
        )
    if request.format is not None and request.format.kind != "json_schema":
        raise UnsupportedParameter(
            "Anthropic's API holds answers to JSON schemas only. Ask for one.",
            param=request.format.param,
        )


def _turn(message: Message, signer: Signer) -> dict[str, Any]:
    if message.role == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": message.tool_call_id,
            "content": message.content,
        }
        return {"role": "user", "content": [result]}
    if message.role == "assistant" and (message.tool_calls or message.reasoning):
        return {"role": "assistant", "content": list(_blocks(message, signer))}
    return {"role": message.role, "content": message.content}


def _blocks(message: Message, signer: Signer) -> Iterable[dict[str, Any]]:
    if message.reasoning:
        signature = signer.sign(message.reasoning, is_shown=True)
        yield {"type": "thinking", "thinking": message.reasoning, "signature": signature}
    if message.content:
        yield {"type": "text", "text": message.content}
    for call in message.tool_calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)}


def _output(request: ChatRequest) -> dict[str, Any]:
    assert isinstance(request.input, Conversation)
    effort = request.input.template_arguments.get("reasoning_effort")
    output = {} if effort is None else {"effort": effort}
    if request.format is not None:
        output["format"] = {"type": "json_schema", "schema": request.format.value}
    return output


def _thinking(thinking: bool | None, tokens: int | None) -> dict[str, Any] | None:
    if thinking and tokens is not None:
        return {"type": "enabled", "budget_tokens": tokens}
    return None if thinking is None else {"type": "adaptive" if thinking else "disabled"}


def _tools(tools: tuple[Tool, ...], choice: ToolChoice) -> dict[str, Any]:
    if not tools:
        return {}
    asked: dict[str, Any] = {"type": KINDS[choice.mode]}
    if choice.name is not None:
        asked = {"type": "tool", "name": choice.name}
    if not choice.is_parallel:
        asked["disable_parallel_tool_use"] = True
    has_choice = choice != ToolChoice()
    return {"tools": list(map(_tool, tools)), "tool_choice": asked if has_choice else None}


def _tool(tool: Tool) -> dict[str, Any]:
    custom: dict[str, Any] = {"name": tool.name, "input_schema": dict(tool.parameters)}
    if tool.description is not None:
        custom["description"] = tool.description
    return {**custom, "strict": True} if tool.is_strict else custom
