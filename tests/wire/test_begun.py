"""An answer that the client of a chat completion has begun: who may say so, and how."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_manager.chat.request import ChatRequest, Conversation, Origin
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.openai.bodies import chat_body
from mlx_manager.wire.openai.requests import chat_request
from mlx_manager.wire.openai.schema import ChatCompletionBody

ORIGIN = Origin("request-1", "/v1/chat/completions")
ASKED = {"role": "user", "content": "Hi"}
BEGUN = {"role": "assistant", "content": "The best is "}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "look"}}
STRICT = {"type": "function", "function": {"name": "look", "strict": True}}
GO_ON = {"continue_final_message": True}


def request_for(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": list(messages), **fields}
    return chat_request(ChatCompletionBody.model_validate(body), ORIGIN)


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        (BEGUN, GO_ON),
        (BEGUN, {**GO_ON, "add_generation_prompt": False}),
        ({**BEGUN, "prefix": True}, {}),
        (BEGUN, {**GO_ON, "tools": [TOOL]}),
        (BEGUN, {**GO_ON, "tools": [STRICT], "tool_choice": "none"}),
    ],
)
def test_the_last_message_begins_the_answer(last: dict[str, Any], fields: dict[str, Any]) -> None:
    request = request_for(ASKED, last, **fields)
    assert isinstance(request.input, Conversation)
    assert request.input.is_begun
    assert request.input.messages[-1].content == "The best is "
    assert chat_request(ChatCompletionBody.model_validate(chat_body(request)), ORIGIN) == request


@pytest.mark.parametrize(
    "fields", [{}, {"continue_final_message": False}, {"add_generation_prompt": True}]
)
def test_it_doesn_t_unless_that_is_said(fields: dict[str, Any]) -> None:
    request = request_for(ASKED, BEGUN, **fields)
    assert isinstance(request.input, Conversation)
    assert not request.input.is_begun


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([ASKED], GO_ON, "messages[0]"),
        ([ASKED, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}], GO_ON, "messages[1]"),
        ([ASKED, BEGUN], {**GO_ON, "add_generation_prompt": True}, "add_generation_prompt"),
        ([ASKED, BEGUN], {"add_generation_prompt": False}, "add_generation_prompt"),
        ([ASKED, {**BEGUN, "prefix": True}, ASKED], {}, "messages[1].prefix"),
        ([{**ASKED, "prefix": True}], {}, "messages[0]"),
        ([ASKED, BEGUN], {**GO_ON, "response_format": {"type": "json_object"}}, "response_format"),
        ([ASKED, BEGUN], {**GO_ON, "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ([ASKED, BEGUN], {**GO_ON, "tools": [STRICT]}, "tools"),
    ],
)  # fmt: skip
def test_a_beginning_that_can_t_be_gone_on_with_is_refused(
    messages: list[dict[str, Any]], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_for(*messages, **fields)
    assert refused.value.param == param
