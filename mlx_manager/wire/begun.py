"""An answer that the client has begun: the last message, the assistant's, is its beginning, and the model goes on."""

from __future__ import annotations

from mlx_manager.chat.request import ChatRequest, Conversation
from mlx_manager.errors import InvalidRequest


def check_begun(request: ChatRequest, place: str) -> ChatRequest:
    """Return the request. Raises InvalidRequest where the answer is begun and can't be gone on with as asked.

    `place` is where the client's body has the last message.
    """
    conversation = request.input
    if not isinstance(conversation, Conversation) or not conversation.is_begun:
        return request
    last, choice = conversation.messages[-1], conversation.tool_choice
    if last.role != "assistant":
        raise InvalidRequest(
            f"{place} is no message of the assistant's, so it can't be gone on with. End with one.",
            param=place,
        )
    if last.tool_calls:
        raise InvalidRequest(
            f"{place} calls a tool. What comes next is its result, and not more of the same message.",
            param=place,
        )
    if request.format is not None:
        raise InvalidRequest(
            f"{place} begins the answer, which then can't be held to a format as a whole. Leave out one of them.",
            param=request.format.param,
        )
    if choice.mode == "required" or choice.allowed is not None:
        raise InvalidRequest(
            f"{place} begins the answer, which then can't be made a call. Leave out one of them.",
            param="tool_choice",
        )
    if choice.mode != "none" and any(tool.is_strict for tool in conversation.tools):
        raise InvalidRequest(
            f"{place} begins the answer, whose calls then can't be held to a schema. Leave 'strict' out.",
            param="tools",
        )
    return request
