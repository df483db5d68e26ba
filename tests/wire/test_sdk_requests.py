"""What the installed SDKs send is what was recorded, and comes back from a chat request as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import UnsupportedParameter
from mlx_manager.wire.anthropic.bodies import message_body
from mlx_manager.wire.anthropic.requests import message_request
from mlx_manager.wire.anthropic.schema import MessagesBody
from mlx_manager.wire.openai.bodies import chat_body
from mlx_manager.wire.openai.requests import chat_request
from mlx_manager.wire.openai.responses.bodies import response_body
from mlx_manager.wire.openai.responses.items import input_items
from mlx_manager.wire.openai.responses.requests import response_request
from mlx_manager.wire.openai.responses.schema import ResponsesBody
from mlx_manager.wire.openai.schema import ChatCompletionBody
from mlx_manager.wire.signature import Signer
from tests.wire.response_calls import RESPONSES
from tests.wire.sdk_requests import (
    ANTHROPIC,
    NAMES,
    OPENAI,
    RECORDED,
    SCHEMA,
    listening,
    sent_by,
)

SIGNER = Signer(b"key")
STORED: dict[str, Any] = {
    "id": "msg_stored",
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Hello"}],
}
CALL = ToolCall("call_1", "weather", {"city": "Zürich", "days": 3})
TOOL = Tool("weather", "Tells the weather", SCHEMA, is_strict=True)


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def openai_request(body: dict[str, Any]) -> ChatRequest:
    origin = Origin("r", "/v1/chat/completions")
    return replace(chat_request(ChatCompletionBody.model_validate(body), origin), origin=ORIGIN)


def anthropic_request(body: dict[str, Any]) -> ChatRequest:
    return message_request(MessagesBody.model_validate(body), ORIGIN, SIGNER)


ORIGIN = Origin("r", "/v1/messages")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening() as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_sdk_sends_what_was_recorded(address: str, name: str) -> None:
    # After an update of an SDK: `python -m tests.wire.sdk_requests`, and look at what has changed.
    assert sent_by(name, address) == recorded(name)


@pytest.mark.parametrize("name", OPENAI)
def test_a_body_of_openai_s_client_comes_back_as_the_same_request(name: str) -> None:
    request = openai_request(recorded(name)["body"])
    assert openai_request(chat_body(request)) == request


def responses_request(body: dict[str, Any]) -> ChatRequest:
    """What a response asks for; of what is stored there is one item, and no earlier response."""
    read = ResponsesBody.model_validate({**body, "previous_response_id": None})
    items = input_items(read.input, "r", SIGNER, {STORED["id"]: STORED})
    return response_request(read, ORIGIN, items)


def without_unheld(request: ChatRequest) -> ChatRequest:
    """The request without what was left out of it, which its body doesn't say again."""
    assert isinstance(request.input, Conversation)
    told = replace(request.input, unheld=(), absent_tools=())
    same = request.format and replace(request.format, param="")
    return replace(request, input=told, format=same)


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_s_body_comes_back_as_the_same_request(name: str) -> None:
    request = without_unheld(responses_request(recorded(name)["body"]))
    assert without_unheld(responses_request(response_body(request))) == request


@pytest.mark.parametrize("name", sorted(OPENAI.keys() - {"openai-developer"}))
def test_what_a_chat_asks_can_be_asked_as_a_response(name: str) -> None:
    request = replace(openai_request(recorded(name)["body"]), origin=ORIGIN)
    assert without_unheld(responses_request(response_body(request))) == without_unheld(request)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "Hi", "name": "ann"}]}, "messages[].name"),
        ({"chat_template_kwargs": {"shout": True}}, "chat_template_kwargs"),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "I", "prefix": True},
                ]
            },
            "continue_final_message",
        ),
    ],
)
def test_what_the_responses_api_has_no_word_for_is_refused(
    fields: dict[str, Any], param: str
) -> None:
    request = openai_request(recorded("openai-plain")["body"] | fields)
    with pytest.raises(UnsupportedParameter) as refusal:
        response_body(request)
    assert refusal.value.param == param


def test_several_answers_are_asked_for_again() -> None:
    request = openai_request(recorded("openai-plain")["body"] | {"n": 3})
    assert openai_request(chat_body(request)) == request


def test_a_choice_among_some_tools_comes_back_and_anthropic_has_no_word_for_it() -> None:
    some = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    body = recorded("openai-tools")["body"]
    body["tool_choice"] = {"type": "allowed_tools", "allowed_tools": some}
    request = openai_request(body)
    assert isinstance(request.input, Conversation)
    assert request.input.tool_choice == ToolChoice("auto", is_parallel=False, allowed=("weather",))
    assert openai_request(chat_body(request)) == request
    with pytest.raises(UnsupportedParameter, match="only some of the tools"):
        message_body(replace(request, sampling=Sampling()), SIGNER)


@pytest.mark.parametrize("name", ANTHROPIC)
def test_a_body_of_anthropic_s_client_comes_back_as_the_same_request(name: str) -> None:
    request = anthropic_request(recorded(name)["body"])
    assert anthropic_request(message_body(request, SIGNER)) == request


def conversation(name: str) -> Conversation:
    read = openai_request if name in OPENAI else anthropic_request
    found = read(recorded(name)["body"]).input
    assert isinstance(found, Conversation)
    return found


def test_instructions_are_system_messages_wherever_they_stand() -> None:
    assert [(one.role, one.content) for one in conversation("openai-several-systems").messages] == [
        ("system", "You are brief."),
        ("system", "You are kind."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("system", "The user is in Bern now."),
        ("user", "Where am I?"),
    ]
    assert [(one.role, one.content) for one in conversation("anthropic-systems").messages] == [
        ("system", "You are brief.\nYou are kind."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("system", "The user is in Bern now."),
        ("user", "Where am I?"),
    ]
    first = conversation("openai-developer").messages[0]
    assert first == Message("system", "Answer in French.")


def test_both_clients_words_for_tools_are_the_same_request() -> None:
    ours, theirs = conversation("openai-tools"), conversation("anthropic-tools")
    assert ours.tools == theirs.tools == (TOOL,)
    assert ours.messages[1] == Message("assistant", "I look it up.", tool_calls=(CALL,))
    assert theirs.messages[1].tool_calls == (replace(CALL, id="toolu_1"),)
    assert ours.messages[2] == Message("tool", "sunny", tool_call_id="call_1")
    assert theirs.messages[2] == Message("tool", "sunny", tool_call_id="toolu_1")
    assert ours.tool_choice == ToolChoice("required", "weather", is_parallel=False)
    assert theirs.tool_choice == ToolChoice("required", is_parallel=False)


@pytest.mark.parametrize("name", ["anthropic-tools", "anthropic-thinking", "anthropic-format"])
def test_what_one_client_asked_can_be_asked_in_the_other_s_words(name: str) -> None:
    request = anthropic_request(recorded(name)["body"])
    told = openai_request(chat_body(request))
    assert isinstance(told.input, Conversation)
    assert isinstance(request.input, Conversation)
    assert (told.input.messages, told.input.tools) == (request.input.messages, request.input.tools)
    assert (told.input.tool_choice, told.input.thinking) == (
        request.input.tool_choice,
        request.input.thinking,
    )


def test_what_anthropic_has_no_word_for_is_refused() -> None:
    request = openai_request(recorded("openai-several-systems")["body"])
    with pytest.raises(UnsupportedParameter, match="other ways of sampling"):
        message_body(request, SIGNER)
    plain = replace(request, sampling=Sampling(temperature=0.2))
    assert message_body(plain, SIGNER)["temperature"] == 0.2
