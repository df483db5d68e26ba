"""`tool_choice` of type `allowed_tools`, in both of OpenAI's APIs: of all tools only some may be called."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI

from tests.server.test_tools import MODEL, QUESTION, WEATHER, ask

TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
TOOLS: Any = [WEATHER, TIME]
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]


def only(*names: str, mode: str = "auto") -> Any:
    some = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": some}}


def only_flat(*names: str, mode: str = "auto") -> Any:
    some = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": some}


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("name", ["get_weather", "get_time"])
async def test_a_tool_that_is_not_allowed_is_not_called_and_the_prompt_stays_as_it_was(
    openai: AsyncOpenAI, mode: str, name: str
) -> None:
    free = await ask(openai, tools=TOOLS)
    # Left to itself the model calls one of them.
    assert free.choices[0].message.tool_calls[0].function.name == "get_weather"
    held = await ask(openai, tools=TOOLS, tool_choice=only(name, mode=mode))
    assert {call.function.name for call in held.choices[0].message.tool_calls} == {name}
    if mode == "auto":
        assert held.usage.prompt_tokens == free.usage.prompt_tokens


async def test_with_some_tools_allowed_an_answer_may_still_be_text(openai: AsyncOpenAI) -> None:
    hello = {"role": "user", "content": "What is MLX Manager?"}
    response = await ask(openai, hello, tools=TOOLS, tool_choice=only("get_time"))
    assert response.choices[0].finish_reason == "stop"
    assert response.choices[0].message.content


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_responses_have_it_in_their_form(openai: AsyncOpenAI, mode: str) -> None:
    choice = only_flat("get_time", mode=mode)
    tools = [*FLAT, {"type": "web_search"}]
    choice["tools"].append({"type": "web_search"})
    response = await openai.responses.create(
        model=MODEL, input=QUESTION, tools=tools, tool_choice=choice, temperature=0
    )
    assert {item.name for item in response.output if item.type == "function_call"} == {"get_time"}
    assert response.tool_choice.to_dict() == choice  # type: ignore[union-attr]


async def test_it_goes_together_with_strict_tools_and_a_format(openai: AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    strict = {"type": "function", "function": {**TIME["function"], "strict": True}}
    response = await ask(
        openai,
        tools=[WEATHER, strict],
        tool_choice=only("get_time"),
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    message = response.choices[0].message
    if message.tool_calls:
        [name] = {call.function.name for call in message.tool_calls}
        assert name == "get_time"
    else:
        assert json.loads(message.content)["a"] == 1


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (only("get_wether"), "'get_wether', which is not one of 'tools'"),
        (only(), "at least 1 item"),
        (only("get_time", mode="none"), "Input should be 'auto' or 'required'"),
        ({"type": "custom", "custom": {"name": "get_time"}}, "of a 'type', 'function' or"),
        ("all", "Input should be 'none', 'auto' or 'required'"),
    ],
)
async def test_a_choice_that_can_not_be_is_refused(
    openai: AsyncOpenAI, choice: Any, says: str
) -> None:
    with pytest.raises(sdk.BadRequestError, match=says) as refusal:
        await ask(openai, tools=TOOLS, tool_choice=choice)
    assert str(refusal.value.param).startswith("tool_choice")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (only_flat("get_wether"), "'get_wether', which is not one of 'tools'"),
        (only_flat(), "at least 1 item"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, "type 'mcp'"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, "left out"),
    ],
)
async def test_a_choice_of_a_response_that_can_not_be_is_refused(
    http: httpx.AsyncClient, choice: Any, says: str
) -> None:
    body = {"model": MODEL, "input": QUESTION, "tools": FLAT, "tool_choice": choice}
    response = await http.post("/v1/responses", json=body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"].startswith("tool_choice")
