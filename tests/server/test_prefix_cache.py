"""What clients and traces are told of the prefix cache."""

from __future__ import annotations

from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan

from tests.server.test_tools import MODEL, ask
from tests.support.running import RunningServer
from tests.support.spans import Spans

SYSTEM = {"role": "system", "content": "You are the assistant of one long test. " * 12}


def conversation(*texts: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(texts)
    turns = zip(roles, texts, strict=False)
    return [SYSTEM, *({"role": role, "content": text} for role, text in turns)]


def attributes_of(name: str, phases: list[ReadableSpan]) -> dict[str, Any]:
    [phase] = [phase for phase in phases if phase.name == name]
    return dict(phase.attributes or {})


def cached(response: Any) -> int:
    return int(response.usage.prompt_tokens_details.cached_tokens)


async def test_a_repeat_is_all_cached_but_for_its_last_token(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    asked = conversation("A question that comes twice")
    first = await ask(openai, *asked, max_tokens=5)
    again = await ask(openai, *asked, max_tokens=5)
    assert cached(again) == again.usage.prompt_tokens - 1
    assert again.choices[0].message.content == first.choices[0].message.content
    chat, *phases = await spans.of_answer(again.id)
    prefill = attributes_of("prefill", phases)
    assert prefill["mlx.cache.outcome"] == "hit"
    assert prefill["mlx.prefill.tokens"] == 1
    assert "mlx.cache.miss_reason" not in prefill
    assert (chat.attributes or {})["gen_ai.usage.cache_read.input_tokens"] == cached(again)


async def test_a_prompt_is_computed_from_where_it_differs(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    await ask(openai, *conversation("One way to go on"), max_tokens=5)
    response = await ask(openai, *conversation("Quite another way to go on"), max_tokens=5)
    assert 50 < cached(response) < response.usage.prompt_tokens - 1
    prefill = attributes_of("prefill", await spans.of_answer(response.id))
    assert prefill["mlx.cache.outcome"] == "partial"
    assert prefill["mlx.cache.miss_reason"] == "diverged"
    assert prefill["mlx.cache.matched_tokens"] == cached(response)
    assert prefill["mlx.prefill.tokens"] == response.usage.prompt_tokens - cached(response)


async def test_every_api_tells_of_it_in_its_own_words(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    await ask(openai, *conversation("Told to both"), max_tokens=5)
    stream = await ask(
        openai,
        *conversation("Told to both"),
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    [usage] = [chunk.usage async for chunk in stream if chunk.usage]
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    client = AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    async with client:
        message = await client.messages.create(
            model=MODEL,
            max_tokens=5,
            system=SYSTEM["content"],
            messages=[{"role": "user", "content": "Told to both"}],
        )
    assert message.usage.cache_read_input_tokens == usage.prompt_tokens - 1
    assert message.usage.input_tokens == 1
