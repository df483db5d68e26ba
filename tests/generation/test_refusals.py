"""A refusal names what can't be kept to: the format, a tool, or what can't be together."""

from __future__ import annotations

import pytest

from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Tool,
    ToolChoice,
)
from mlx_manager.errors import InvalidRequest
from mlx_manager.mlx_server.generation.refusals import WhyNot, explained

FORMAT = AnswerFormat("regex", "a", "response_format")
TOOLS = (Tool("f", is_strict=True), Tool("g", is_strict=True), Tool("loose"))
REFUSAL = InvalidRequest(
    "'response_format' can't be kept to: all is lost.", param="response_format"
)


def refusing(*together: str) -> WhyNot:
    """Refuses each request that asks for all of these, by their names."""

    async def why_not(request: ChatRequest) -> str | None:
        assert isinstance(request.input, Conversation)
        asked = {tool.name for tool in request.input.tools} | (
            {"format"} if request.format else set()
        )
        return "it is too complex" if asked.issuperset(together) else None

    return why_not


async def told(why_not: WhyNot, choice: ToolChoice, tools: tuple[Tool, ...] = TOOLS) -> str:
    conversation = Conversation((Message("user", "Hi"),), tools=tools, tool_choice=choice)
    request = ChatRequest("m", conversation, Origin("r", "/v1/chat/completions"), format=FORMAT)
    return (await explained(REFUSAL, request, why_not)).message


@pytest.mark.parametrize(
    ("together", "says"),
    [
        (("f",), "The schema of the strict tool 'f' can't be kept to: it is too complex. Leave"),
        (("g",), "The schema of the strict tool 'g' can't be kept to: it is too complex. Leave"),
        (("format",), "all is lost"),
        (("format", "g"), "beside the strict tool 'g', though each can by itself: it is too complex. Leave"),
        (("format", "f", "g"), "beside the strict tools 'f', 'g', though each can by itself: it is too complex. Leave"),
    ],
)  # fmt: skip
async def test_what_can_not_be_kept_to_is_named(together: tuple[str, ...], says: str) -> None:
    assert says in await told(refusing(*together), ToolChoice())


async def test_only_what_may_be_called_is_looked_at() -> None:
    why_not = refusing("f")
    assert "'f'" in await told(why_not, ToolChoice("required"))
    for choice in (ToolChoice("none"), ToolChoice("required", "g"), ToolChoice(allowed=("g",))):
        assert await told(why_not, choice) == REFUSAL.message
    assert await told(why_not, ToolChoice(), (TOOLS[2],)) == REFUSAL.message
