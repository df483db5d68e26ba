"""The client begins the answer and the model goes on with it, through the real clients, with the starter model."""

from __future__ import annotations

import re
from typing import Any

import anthropic as anthropic_sdk
import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.server.test_tools import QUESTION, WEATHER

MODEL = "mlx-manager/starter"
ASKED: dict[str, Any] = {"role": "user", "content": "Which colour has the sky?"}
SAID: dict[str, Any] = {"model": MODEL, "max_tokens": 60}


async def completion(openai: AsyncOpenAI, **body: Any) -> Any:
    return await openai.chat.completions.create(**body)


async def message(anthropic: AsyncAnthropic, **body: Any) -> Any:
    return await anthropic.messages.create(**body)


async def chat(openai: AsyncOpenAI, begun: str | None, **fields: Any) -> Any:
    turns = [ASKED] if begun is None else [ASKED, {"role": "assistant", "content": begun}]
    extra = {} if begun is None else {"continue_final_message": True}
    body = {**SAID, "temperature": 0, "messages": turns, "extra_body": extra, **fields}
    return await completion(openai, **body)


def beginnings(answer: str) -> list[str]:
    """The answer up to each of its spaces, which is where tokens begin."""
    found = [answer[: at.start()] for at in re.finditer(" ", answer)]
    assert len(found) > 1
    return found


async def test_a_chat_goes_on_as_the_model_would_have(openai: AsyncOpenAI) -> None:
    whole = (await chat(openai, None)).choices[0].message.content
    for begun in beginnings(whole):
        answer = await chat(openai, begun)
        assert answer.choices[0].message.content == whole.removeprefix(begun)
        assert answer.choices[0].finish_reason == "stop"
        chunks = [chunk async for chunk in await chat(openai, begun, stream=True)]
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert text == whole.removeprefix(begun)


async def test_a_message_goes_on_as_the_model_would_have(anthropic: AsyncAnthropic) -> None:
    greedy: dict[str, Any] = {**SAID, "extra_body": {"temperature": 0}}
    whole = (await message(anthropic, messages=[ASKED], **greedy)).content[0].text
    for begun in beginnings(whole):
        turns: list[Any] = [ASKED, {"role": "assistant", "content": begun}]
        answer = await message(anthropic, messages=turns, **greedy)
        assert [block.text for block in answer.content] == [whole.removeprefix(begun)]
        count = await anthropic.messages.count_tokens(model=MODEL, messages=turns)
        read = answer.usage.cache_read_input_tokens or 0
        assert count.input_tokens == answer.usage.input_tokens + read


async def test_thoughts_that_stand_before_it_are_part_of_it(openai: AsyncOpenAI) -> None:
    asked = {"role": "user", "content": "What is 3 plus 4?"}
    greedy: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 300}
    free = await completion(openai, messages=[asked], reasoning_effort="high", **greedy)
    thought, text = free.choices[0].message.reasoning_content, free.choices[0].message.content
    begun = beginnings(text)[0]
    last = {"role": "assistant", "content": begun, "reasoning_content": thought, "prefix": True}
    answer = await completion(openai, messages=[asked, last], **greedy)
    assert answer.choices[0].message.content == text.removeprefix(begun)
    # A thought that is begun is gone on with, too.
    half = thought[: thought.index(" ", len(thought) // 2)]
    last = {"role": "assistant", "content": f"<think>\n{half}", "prefix": True}
    answer = await completion(openai, messages=[asked, last], **greedy)
    assert half + answer.choices[0].message.reasoning_content == thought
    assert answer.choices[0].message.content == text


async def test_behind_a_beginning_the_model_may_still_call(openai: AsyncOpenAI) -> None:
    turns: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<tool_call>\n", "prefix": True},
    ]
    answer = await completion(
        openai, model=MODEL, messages=[turns[0]], tools=[WEATHER], temperature=0, max_tokens=200
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    turns[1]["content"] = "I look it up.\n"
    answer = await completion(
        openai, model=MODEL, messages=turns, tools=[WEATHER], temperature=0, max_tokens=200
    )
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")


async def test_what_can_t_be_gone_on_with_is_a_400_that_says_why(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic
) -> None:
    with pytest.raises(sdk.BadRequestError, match="reasoning off") as met:
        await chat(openai, "Blue", reasoning_effort="high")
    assert met.value.param == "messages"
    turns: list[Any] = [ASKED, {"role": "assistant", "content": "Blue "}]
    with pytest.raises(anthropic_sdk.BadRequestError, match="white space"):
        await message(anthropic, messages=turns, **SAID)
    turns[1]["content"] = "Blue"
    with pytest.raises(anthropic_sdk.BadRequestError, match="reasoning off"):
        await message(
            anthropic, messages=turns, thinking={"type": "enabled", "budget_tokens": 1024}, **SAID
        )


async def test_what_is_begun_is_tokenized_as_it_is_answered(
    http: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    turns: list[Any] = [ASKED, {"role": "assistant", "content": "Blue"}]
    body = {"model": MODEL, "messages": turns, "continue_final_message": True}
    tokens = (await http.post("/v1/tokenize", json=body)).json()
    text = (
        await http.post("/v1/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]})
    ).json()
    assert text["text"].endswith("Blue")
    answer = await chat(openai, "Blue")
    assert answer.usage.prompt_tokens == tokens["count"]
