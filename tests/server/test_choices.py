"""Several choices, `n` and `best_of`, asked for with the `openai` package."""

from __future__ import annotations

import asyncio
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conftest import ENDLESS_TOKENS
from tests.server.test_audit import row_of
from tests.server.test_chat_completions import MESSAGES, MODEL, ask, ask_streamed
from tests.server.test_tools import QUESTION, WEATHER
from tests.support.running import RunningServer, eventually
from tests.support.spans import Spans

PLAIN, STARTER = "test/plain", "mlx-manager/starter"
SEEDED: dict[str, Any] = {"temperature": 1, "seed": 7}


def texts(answer: ChatCompletion) -> list[str | None]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.message.content for choice in answer.choices]


def streamed_texts(chunks: list[ChatCompletionChunk], count: int) -> list[str]:
    found = [""] * count
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    return found


async def complete(client: AsyncOpenAI, **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"model": PLAIN, "prompt": "Once", "max_tokens": 12}
    answer: Completion = await client.completions.create(**(arguments | changes))
    return answer


async def test_seeded_choices_differ_and_come_again(openai: AsyncOpenAI) -> None:
    some, again, alone = await asyncio.gather(
        ask(openai, n=4, **SEEDED), ask(openai, n=4, **SEEDED), ask(openai, **SEEDED)
    )
    assert len(set(texts(some))) == 4
    assert texts(some) == texts(again)
    assert texts(some)[:1] == texts(alone)
    next_seed = await ask(openai, n=4, temperature=1, seed=8)
    assert not set(texts(next_seed)) & set(texts(some))


async def test_greedy_choices_are_equal_and_the_prompt_is_counted_once(
    openai: AsyncOpenAI,
) -> None:
    alone, some = await ask(openai), await ask(openai, n=3)
    assert texts(some) == texts(alone) * 3
    assert some.usage is not None
    assert alone.usage is not None
    assert some.usage.prompt_tokens == alone.usage.prompt_tokens
    assert some.usage.completion_tokens == 3 * alone.usage.completion_tokens == 120
    assert some.usage.total_tokens == some.usage.prompt_tokens + 120


async def test_a_stream_tells_the_choices_apart(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"n": 3, **SEEDED, "logprobs": True}
    whole = await ask(openai, **asked)
    chunks = await ask_streamed(openai, **asked, stream_options={"include_usage": True})
    assert streamed_texts(chunks, 3) == texts(whole)
    roles = [
        choice.index
        for chunk in chunks
        for choice in chunk.choices
        if choice.delta.role is not None
    ]
    assert sorted(roles) == [0, 1, 2]
    ends = [
        (choice.index, choice.finish_reason)
        for chunk in chunks
        for choice in chunk.choices
        if choice.finish_reason
    ]
    assert sorted(ends) == [(index, "length") for index in range(3)]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert chunks[-1].choices == []
    for index, choice in enumerate(whole.choices):
        assert choice.logprobs is not None
        of_choice = [
            token.token
            for chunk in chunks
            for one in chunk.choices
            if one.index == index and one.logprobs
            for token in one.logprobs.content or ()
        ]
        assert of_choice == [token.token for token in choice.logprobs.content or ()]


async def test_each_choice_ends_where_it_ends(openai: AsyncOpenAI) -> None:
    free = await ask(openai, n=3, **SEEDED)
    second = texts(free)[1] or ""
    stop = next(
        second[at : at + 3]
        for at in range(2, len(second) - 3)
        if all(second[at : at + 3] not in (texts(free)[other] or "") for other in (0, 2))
    )
    stopped = await ask(openai, n=3, stop=stop, **SEEDED)
    assert [choice.finish_reason for choice in stopped.choices] == ["length", "stop", "length"]
    assert texts(stopped) == [texts(free)[0], second[: second.index(stop)], texts(free)[2]]
    assert stopped.usage is not None
    assert free.usage is not None
    assert stopped.usage.completion_tokens < free.usage.completion_tokens


async def test_each_choice_has_its_own_calls(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": STARTER,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [WEATHER],
        "max_tokens": 200,
        "n": 2,
    }
    answer, chunks = await ask(openai, **asked), await ask_streamed(openai, **asked)
    calls: list[list[Any]] = [list(choice.message.tool_calls or []) for choice in answer.choices]
    assert [[call.function.name for call in of_one] for of_one in calls] == [["get_weather"]] * 2
    assert calls[0][0].id != calls[1][0].id
    arguments = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                assert call.index == 0
                assert call.function is not None
                arguments[choice.index] += call.function.arguments or ""
    assert arguments == [of_one[0].function.arguments for of_one in calls]


async def test_each_choice_is_held_to_the_format(openai: AsyncOpenAI) -> None:
    held = {"structured_outputs": {"regex": "[0-9]{6}"}}
    answer = await ask(openai, n=3, extra_body=held, **SEEDED)
    found = [text or "" for text in texts(answer)]
    assert [len(text) for text in found] == [6] * 3
    assert all(text.isdigit() for text in found)
    assert len(set(found)) > 1


async def test_text_completions_have_choices_too(openai: AsyncOpenAI) -> None:
    some = await complete(openai, n=3, echo=True, **SEEDED)
    stream = await openai.completions.create(
        model=PLAIN, prompt="Once", max_tokens=12, n=3, echo=True, stream=True, **SEEDED
    )
    found = [""] * 3
    async for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] += choice.text
    assert found == [choice.text for choice in some.choices]
    assert all(text.startswith("Once") for text in found)
    assert len(set(found)) == 3


async def test_the_best_are_those_whose_tokens_were_likeliest(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {**SEEDED, "logprobs": 0}
    every = await complete(openai, n=5, **asked)
    best = await complete(openai, n=2, best_of=5, **asked)

    def mean(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage == every.usage
    silent = await complete(openai, best_of=5, **SEEDED)
    assert [(one.text, one.logprobs) for one in silent.choices] == [(ranked[0].text, None)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
    ],
)
async def test_what_can_not_be_is_refused_by_name(
    openai: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as met:
        await complete(openai, **fields)
    assert met.value.param == param


async def test_span_and_audit_row_count_all_choices(
    server: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    answer = await ask(openai, n=3, max_tokens=10)
    chat = next(
        span
        for span in await spans.of_answer(answer.id)
        if span.attributes and "gen_ai.response.id" in span.attributes
    )
    attributes = chat.attributes or {}
    assert answer.usage is not None
    assert attributes["gen_ai.request.choice.count"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ("length",) * 3
    assert attributes["gen_ai.usage.output_tokens"] == 30
    assert attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    decode = next(one for one in await spans.of_answer(answer.id) if one.name == "decode")
    assert (decode.attributes or {})["mlx.decode.tokens"] == 30
    request_id = answer.id.removeprefix("chatcmpl-")

    row = await row_of(server, request_id)
    assert (row.input_tokens, row.output_tokens) == (answer.usage.prompt_tokens, 30)


async def test_the_memory_that_is_predicted_is_that_of_all_choices(
    server: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    async def predicted_bytes(count: int) -> int:
        answer = await ask(openai, n=count, max_tokens=10)
        queue = next(one for one in await spans.of_answer(answer.id) if one.name == "queue")
        return int(str((queue.attributes or {})["mlx.queue.kv_bytes"]))

    assert await predicted_bytes(3) == 3 * await predicted_bytes(1) > 0


async def test_a_client_that_leaves_frees_the_places_of_all_choices(
    server: RunningServer, openai: AsyncOpenAI
) -> None:
    stream = await openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=6, max_tokens=ENDLESS_TOKENS, temperature=0, stream=True
    )
    await anext(aiter(stream))
    assert active(server) == 6
    await stream.close()
    await eventually(lambda: active(server) == 0)


def active(server: RunningServer) -> int:
    engines = [one.engine for one in server.pool.residents if one.files.id == MODEL]
    return sum(engine.active_sequences for engine in engines if engine is not None)
