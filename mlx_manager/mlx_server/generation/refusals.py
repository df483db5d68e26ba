"""What a refusal of a grammar is about, where that holds for several things at once: each is asked for by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from mlx_manager.chat.request import ChatRequest, Conversation, Tool
from mlx_manager.errors import InvalidRequest

# Why what a request asks for can't be kept to; None when it can.
WhyNot = Callable[[ChatRequest], Awaitable[str | None]]
# Each is a request to the engine, and a grammar to compile.
MOST_ASKED = 16


async def explained(
    refusal: InvalidRequest, request: ChatRequest, why_not: WhyNot
) -> InvalidRequest:
    """Return the refusal in words about the tool, the format, or the two that can't be kept to."""
    strict = strict_tools(request)[:MOST_ASKED]
    for tool in strict:
        if (why := await why_not(_with(request, tool, has_format=False))) is not None:
            return of_tool(tool, why)
    is_both = bool(strict) and _may_say_format(request)
    if is_both and await why_not(_with(request, None)) is None:
        return await _beside_the_format(refusal, request, strict, why_not)
    return refusal


async def _beside_the_format(
    refusal: InvalidRequest, request: ChatRequest, strict: list[Tool], why_not: WhyNot
) -> InvalidRequest:
    """Return the refusal about the tools that can't be kept to beside the format."""
    assert request.format is not None, "it can be kept to"
    for tool in strict:
        if (why := await why_not(_with(request, tool))) is not None:
            return of_both(request.format.param, [tool], why)
    if len(strict) == 1:
        return refusal
    return of_both(request.format.param, strict, "it is too complex")


def _may_say_format(request: ChatRequest) -> bool:
    """Whether the answer may be of the format as well as a call."""
    is_free = isinstance(request.input, Conversation) and request.input.tool_choice.mode == "auto"
    return is_free and request.format is not None


def strict_tools(request: ChatRequest) -> list[Tool]:
    """Return the tools that may be called and whose arguments are to be held to all of their schemas."""
    if not isinstance(request.input, Conversation) or request.input.tool_choice.mode == "none":
        return []
    choice = request.input.tool_choice
    return [
        tool
        for tool in request.input.tools
        if tool.is_strict and choice.allows(tool) and choice.name in (None, tool.name)
    ]


def of_tool(tool: Tool, why: str) -> InvalidRequest:
    """Return the refusal of a strict tool."""
    return InvalidRequest(
        f"The schema of the strict tool {tool.name!r} can't be kept to: {why.rstrip('.')}. Leave its 'strict' out, or "
        "make the schema simpler.",
        param="tools",
    )


def of_both(param: str, tools: list[Tool], why: str) -> InvalidRequest:
    """Return the refusal of a format beside strict tools, each of which could be kept to by itself."""
    names = ", ".join(repr(tool.name) for tool in tools)
    called = f"the strict tool{'s' * (len(tools) > 1)} {names}"
    return InvalidRequest(
        f"{param!r} can't be kept to beside {called}, though each can by itself: {why.rstrip('.')}. Leave 'strict' "
        "out, make one of the schemas simpler, or ask for the format by itself, with 'tool_choice' \"none\".",
        param="tools",
    )


def _with(request: ChatRequest, tool: Tool | None, *, has_format: bool = True) -> ChatRequest:
    """Return the request for the format alone, a tool alone, or both."""
    assert isinstance(request.input, Conversation)
    conversation = replace(request.input, tools=() if tool is None else (tool,))
    return replace(request, input=conversation, format=request.format if has_format else None)
