"""Answers whose characters take several tokens each, from the model's bytes to the client's text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

MODEL = "mlx-manager/starter"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

JAPANESE = "Introduce yourself in Japanese."
QUESTIONS = [
    JAPANESE,
    "Say hello in Russian.",
    "Say hello in Greek.",
    "Say hello in Arabic.",
    "Say hello in Hindi.",
    "Say hello in Korean.",
    "Send me some emoji.",
]


def body(question: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 200} | changes


async def ask(openai: AsyncOpenAI, question: str, **changes: Any) -> str:
    answer = await openai.chat.completions.create(**body(question, **changes))
    content = answer.choices[0].message.content
    assert content is not None
    return str(content)


async def pieces_of(openai: AsyncOpenAI, question: str, **changes: Any) -> list[str]:
    stream = await openai.chat.completions.create(**body(question, stream=True, **changes))
    deltas = [chunk.choices[0].delta.content async for chunk in stream]
    return [delta for delta in deltas if delta]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_stream_never_cuts_a_character(openai: AsyncOpenAI, question: str) -> None:
    whole = await ask(openai, question)
    pieces = await pieces_of(openai, question)
    assert "".join(pieces) == whole
    # A short answer of so small a model may come in one piece.
    assert len(pieces) > (1 if question == JAPANESE else 0)
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert sum(not character.isascii() for character in whole) > len(whole) / 2


@pytest.mark.parametrize("question", QUESTIONS)
async def test_every_event_of_a_stream_is_one_line_of_json(
    http: httpx.AsyncClient, question: str
) -> None:
    response = await http.post("/v1/chat/completions", json=body(question, stream=True))
    *events, done, end = response.content.decode("utf-8").split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    # `splitlines` also cuts at separators that are legal inside JSON: clients that use it must not stumble.
    assert all(len(event.splitlines()) == 1 for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_stop_string_cuts_exactly_wherever_its_characters_lie(openai: AsyncOpenAI) -> None:
    whole = await ask(openai, JAPANESE)

    async def check(stop: str) -> None:
        expected = whole[: whole.index(stop)]
        assert await ask(openai, JAPANESE, stop=stop) == expected
        assert "".join(await pieces_of(openai, JAPANESE, stop=stop)) == expected

    stops = [whole[start : start + 3] for start in range(len(whole) - 2)]
    assert len(stops) > 20
    await asyncio.gather(*map(check, stops))


async def test_a_limit_in_the_middle_of_a_character_leaves_its_start_out_or_replaces_it_once(
    openai: AsyncOpenAI,
) -> None:
    whole = await ask(openai, JAPANESE)
    for limit in range(1, 16):
        cut = await ask(openai, JAPANESE, max_tokens=limit)
        assert whole.startswith(cut.rstrip(REPLACEMENT))
        assert "".join(await pieces_of(openai, JAPANESE, max_tokens=limit)) == cut
