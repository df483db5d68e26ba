"""How a model is to think, as clients of other APIs say it to chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_manager.chat.events import (
    ChatEvent,
    OfChoice,
    ReasoningDelta,
    Started,
    TextDelta,
    Timeline,
    without_reasoning,
)
from mlx_manager.chat.request import ChatRequest, Conversation, Origin
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.openai.bodies import chat_body
from mlx_manager.wire.openai.requests import chat_request
from mlx_manager.wire.openai.schema import ChatCompletionBody

ORIGIN = Origin("request-1", "/v1/chat/completions")


def body_of(**fields: Any) -> ChatCompletionBody:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    return ChatCompletionBody.model_validate(body | fields)


def request_for(**fields: Any) -> ChatRequest:
    return chat_request(body_of(**fields), ORIGIN)


def conversation_of(request: ChatRequest) -> Conversation:
    assert isinstance(request.input, Conversation)
    return request.input


@pytest.mark.parametrize(
    ("fields", "effort", "is_on", "tokens"),
    [
        ({"reasoning": {}}, None, None, None),
        ({"reasoning": None, "thinking": None}, None, None, None),
        ({"reasoning": {"effort": "high"}}, "high", True, None),
        ({"reasoning": {"effort": "none"}}, "none", False, None),
        ({"reasoning": {"enabled": True}}, None, True, None),
        ({"reasoning": {"enabled": False}}, None, False, None),
        ({"reasoning": {"max_tokens": 200}}, None, True, 200),
        ({"reasoning": {"max_tokens": 200, "enabled": False}}, None, False, 200),
        ({"reasoning": {"effort": "low", "max_tokens": 9}}, "low", True, 9),
        ({"reasoning": {"exclude": True}}, None, None, None),
        ({"reasoning_effort": "low", "reasoning": {"effort": "low"}}, "low", True, None),
        ({"thinking": {"type": "enabled"}}, None, True, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None, True, 1024),
        ({"thinking": {"type": "adaptive"}, "reasoning_effort": "low"}, "low", True, None),
        ({"thinking": {"type": "disabled"}}, None, False, None),
        ({"enable_thinking": False}, None, False, None),
        ({"enable_thinking": True, "thinking_token_budget": 3}, None, True, 3),
    ],
)
def test_each_way_to_say_it_is_understood(
    fields: dict[str, Any], effort: str | None, is_on: bool | None, tokens: int | None
) -> None:
    request = request_for(**fields)
    conversation = conversation_of(request)
    assert conversation.template_arguments.get("reasoning_effort") == effort
    assert (conversation.thinking, request.sampling.thinking_tokens) == (is_on, tokens)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning_effort": "none", "reasoning": {"enabled": True}}, "reasoning.enabled"),
        ({"reasoning_effort": "none", "reasoning": {"max_tokens": 5}}, "reasoning.max_tokens"),
        ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, "thinking.type"),
        ({"reasoning": {"enabled": True}, "enable_thinking": False}, "enable_thinking"),
        ({"thinking_token_budget": 1, "reasoning": {"max_tokens": 2}}, "reasoning.max_tokens"),
        (
            {"reasoning": {"max_tokens": 2}, "thinking": {"type": "enabled", "budget_tokens": 3}},
            "thinking.budget_tokens",
        ),
    ],
)
def test_who_contradicts_himself_is_told_where(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_for(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"reasoning": "high"}, ("reasoning",)),
        ({"reasoning": {"effort": "huge"}}, ("reasoning", "effort")),
        ({"reasoning": {"max_tokens": -1}}, ("reasoning", "max_tokens")),
        ({"reasoning": {"max_tokens": "9"}}, ("reasoning", "max_tokens")),
        ({"reasoning": {"mood": "good"}}, ("reasoning", "mood")),
        ({"thinking": True}, ("thinking",)),
        ({"thinking": {}}, ("thinking", "type")),
        ({"thinking": {"type": "sometimes"}}, ("thinking", "type")),
        ({"thinking": {"type": "enabled", "budget": 3}}, ("thinking", "budget")),
        ({"enable_thinking": "perhaps"}, ("enable_thinking",)),
        ({"verbosity": "endless"}, ("verbosity",)),
    ],
)
def test_a_wrong_form_is_refused_with_its_place(
    fields: dict[str, Any], place: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        request_for(**fields)
    assert refused.value.errors()[0]["loc"] == place


@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [
        ({}, True),
        ({"reasoning": {"exclude": False}}, True),
        ({"reasoning": {"exclude": True}}, False),
        ({"include_reasoning": False}, False),
        ({"thinking": {"type": "enabled", "display": "omitted"}}, False),
        ({"thinking": {"type": "enabled", "display": "summarized"}}, True),
    ],
)
def test_a_client_may_not_want_to_see_it(fields: dict[str, Any], is_shown: bool) -> None:
    assert body_of(**fields).shows_reasoning is is_shown


async def test_what_is_not_to_be_seen_is_left_out_of_one_answer_and_of_several() -> None:
    async def events() -> AsyncGenerator[ChatEvent, None]:
        yield Started("m", Timeline())
        yield ReasoningDelta("Hm.")
        yield OfChoice(1, ReasoningDelta("Hm."))
        yield OfChoice(1, TextDelta("Yes."))

    kinds = [event async for event in without_reasoning(events())]
    assert kinds[1:] == [OfChoice(1, TextDelta("Yes."))]


def test_what_a_variable_of_the_template_says_goes_to_the_template() -> None:
    request = request_for(
        verbosity="low",
        thinking={"type": "enabled", "clear_thinking": False},
        chat_template_kwargs={"verbosity": "high"},
    )
    arguments = conversation_of(request).template_arguments
    assert arguments == {"clear_thinking": False, "verbosity": "high"}


def test_a_budget_survives_the_way_back() -> None:
    request = request_for(reasoning={"effort": "low", "max_tokens": 7})
    assert chat_request(ChatCompletionBody.model_validate(chat_body(request)), ORIGIN) == request
