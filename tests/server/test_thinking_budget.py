"""Thoughts end with their budget; the starter model really thinks."""

from __future__ import annotations

from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI

from tests.server.test_chat_completions import ask, ask_streamed, content_of
from tests.support.spans import Spans

THINKING: dict[str, Any] = {
    "model": "mlx-manager/starter",
    "messages": [{"role": "user", "content": "What is 3 plus 4?"}],
    "max_tokens": 300,
    "reasoning_effort": "high",
}


def limited(budget: int) -> dict[str, Any]:
    return {**THINKING, "extra_body": {"thinking_token_budget": budget}}


def reasoning_of(answer: Any) -> str:
    return getattr(answer.choices[0].message, "reasoning_content", None) or ""


def reasoning_tokens(answer: Any) -> int:
    return int(answer.usage.completion_tokens_details.reasoning_tokens)


@pytest.mark.parametrize("budget", [0, 2, 4])
async def test_a_thought_is_closed_when_its_budget_is_used_up(
    openai: AsyncOpenAI, spans: Spans, budget: int
) -> None:
    free = await ask(openai, **THINKING)
    assert reasoning_tokens(free) > budget + 2
    answer = await ask(openai, **limited(budget))
    assert budget < reasoning_tokens(answer) <= budget + 2
    assert reasoning_of(free).startswith(reasoning_of(answer))
    assert bool(reasoning_of(answer)) == (budget > 0)
    assert content_of(answer)
    assert answer.choices[0].finish_reason == "stop"
    phases = await spans.of_answer(answer.id)
    [parse] = [phase for phase in phases if phase.name == "parse"]
    names = [event.name for event in parse.events]
    assert names == ["reasoning.began", "reasoning.cut", "reasoning.ended"]
    [chat] = [phase for phase in phases if "gen_ai.response.id" in (phase.attributes or {})]
    assert (chat.attributes or {})["mlx.request.thinking_tokens"] == budget


async def test_a_stream_and_every_choice_keep_to_it(openai: AsyncOpenAI) -> None:
    whole = await ask(openai, **limited(3))
    chunks = await ask_streamed(openai, n=2, **limited(3))
    thoughts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            thoughts[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
    assert thoughts == [reasoning_of(whole)] * 2


async def test_a_budget_that_is_large_enough_changes_nothing(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    free, answer = await ask(openai, **THINKING), await ask(openai, **limited(250))
    assert reasoning_of(answer) == reasoning_of(free) != ""
    assert content_of(answer) == content_of(free)
    [parse] = [one for one in await spans.of_answer(answer.id) if one.name == "parse"]
    assert "reasoning.cut" not in {event.name for event in parse.events}


async def test_a_format_holds_behind_a_thought_that_was_cut(openai: AsyncOpenAI) -> None:
    answer = await ask(
        openai,
        **THINKING,
        extra_body={
            "thinking_token_budget": 3,
            "structured_outputs": {"regex": "[0-9]{3}"},
        },
    )
    assert len(content_of(answer)) == 3
    assert content_of(answer).isdigit()
    assert reasoning_of(answer)


async def test_a_model_that_can_not_think_needs_no_limit(openai: AsyncOpenAI) -> None:
    plain = await ask(openai)
    limited = await ask(openai, extra_body={"thinking_token_budget": 2})
    assert content_of(limited) == content_of(plain)


@pytest.mark.parametrize("value", [-1, "4", True, 1.5])
async def test_what_is_no_number_of_tokens_is_refused(openai: AsyncOpenAI, value: Any) -> None:
    with pytest.raises(sdk.BadRequestError) as met:
        await ask(openai, extra_body={"thinking_token_budget": value})
    assert met.value.param == "thinking_token_budget"


async def test_a_response_keeps_to_it_too(openai: AsyncOpenAI) -> None:
    asked = {
        "model": THINKING["model"],
        "input": THINKING["messages"],
        "reasoning": {"effort": "high"},
    }
    free = await openai.responses.create(**asked)
    cut = await openai.responses.create(**asked, extra_body={"thinking_token_budget": 3})
    assert free.usage is not None
    assert cut.usage is not None
    assert free.usage.output_tokens_details.reasoning_tokens > 5
    assert 3 < cut.usage.output_tokens_details.reasoning_tokens <= 5
    assert cut.output_text
