"""The loops of the SDKs themselves, which call a model's tools for it and give back what they say."""

from __future__ import annotations

from typing import Any

import anthropic as anthropic_sdk
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from openai import AsyncOpenAI
from openai.lib.responses_tool_runner import AsyncRegisteredFunction, AsyncResponsesToolRunner

from tests.server.test_tools import MODEL, QUESTION, WEATHER

ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 200,
    "messages": [{"role": "user", "content": QUESTION}],
}


def weather_tool(asked: list[str]) -> Any:
    """The tool, which notes which cities it is asked for."""

    @beta_async_tool
    async def get_weather(city: str) -> str:
        """Get the weather of a place

        Args:
            city: its name
        """
        asked.append(city)
        return "sunny, 21 C"

    return get_weather


async def test_anthropics_runner_goes_on_where_no_thread_is_kept(
    anthropic: AsyncAnthropic,
) -> None:
    cities = list[str]()
    runner = anthropic.beta.messages.tool_runner(**ASKED, tools=[weather_tool(cities)])
    reasons = [message.stop_reason async for message in runner]
    assert reasons == ["tool_use", "end_turn"]
    assert cities == ["Bern"]


async def test_anthropics_runner_streams_too(anthropic: AsyncAnthropic) -> None:
    cities, ends = list[str](), list[str | None]()
    runner = anthropic.beta.messages.tool_runner(**ASKED, tools=[weather_tool(cities)], stream=True)
    async for stream in runner:
        ends.append((await stream.get_final_message()).stop_reason)
    assert ends == ["tool_use", "end_turn"]
    assert cities == ["Bern"]


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_asks_for_a_thread_is_told_in_the_words_by_which_the_sdk_does_without(
    anthropic: AsyncAnthropic, thread: Any, stream: bool
) -> None:
    with pytest.raises(anthropic_sdk.BadRequestError, match="'thread'") as refusal:
        await anthropic.beta.messages.create(**ASKED, thread=thread, stream=stream)
    body: Any = refusal.value.body
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["details"]["error_code"] == "thread_unsupported_request"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "kept", [{}, {"store": False, "include": ["reasoning.encrypted_content"]}], ids=["kept", "not"]
)
async def test_openais_runner_of_responses_goes_on_with_the_results(
    openai: AsyncOpenAI, stream: bool, kept: dict[str, Any]
) -> None:
    cities = list[object]()

    async def get_weather(arguments: dict[str, object]) -> str:
        cities.append(arguments["city"])
        return "sunny, 21 C"

    flat: Any = {"type": "function", **WEATHER["function"], "strict": False}  # type: ignore[dict-item]
    runner = AsyncResponsesToolRunner(functions=[AsyncRegisteredFunction(flat, get_weather)])
    asked: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, **kept}
    response = await runner.run(openai, asked, max_steps=3, stream=stream)
    assert (response.status, cities) == ("completed", ["Bern"])
    assert response.output_text
