"""Several prompts in one text completion, asked for with the `openai` package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types import Completion

from mlx_manager.mlx_server.app import create_app
from tests.conftest import ENDLESS_TOKENS
from tests.server.test_audit import row_of
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans

PLAIN, SHORT, STARTER = "test/plain", "test/short", "mlx-manager/starter"
PROMPTS = ["Once upon", "The cat sat on the", "def main"]
SEEDED: dict[str, Any] = {"temperature": 1, "seed": 7}


async def complete(client: AsyncOpenAI, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "model": PLAIN,
        "prompt": PROMPTS,
        "max_tokens": 12,
        "temperature": 0,
    }
    return await client.completions.create(**(arguments | changes))


async def complete_each(client: AsyncOpenAI, prompts: list[Any], **changes: Any) -> list[Any]:
    """Ask for each prompt in a request of its own."""
    return await asyncio.gather(*(complete(client, prompt=one, **changes) for one in prompts))


def texts(answer: Completion) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


def counts(*answers: Completion) -> list[int]:
    """The tokens of all prompts and of all answers."""
    used = [answer.usage for answer in answers if answer.usage]
    return [sum(one.prompt_tokens for one in used), sum(one.completion_tokens for one in used)]


@pytest.mark.parametrize("model", [PLAIN, STARTER])
async def test_each_prompt_is_answered_as_if_it_were_alone(openai: AsyncOpenAI, model: str) -> None:
    together = await complete(openai, model=model)
    alone = await complete_each(openai, PROMPTS, model=model)
    assert texts(together) == [text for one in alone for text in texts(one)]
    assert [choice.finish_reason for choice in together.choices] == [
        one.choices[0].finish_reason for one in alone
    ]
    assert counts(together) == counts(*alone)
    assert together.usage.total_tokens == sum(counts(together))


async def test_choices_are_numbered_prompt_by_prompt(openai: AsyncOpenAI) -> None:
    together = await complete(openai, n=3, **SEEDED)
    alone = await complete_each(openai, PROMPTS, n=3, **SEEDED)
    assert texts(together) == [text for one in alone for text in texts(one)]
    assert len(set(texts(together))) == 9
    assert counts(together) == counts(*alone)


async def test_lists_of_token_ids_are_prompts_too(openai: AsyncOpenAI) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    together, alone = await complete(openai, prompt=prompts), await complete_each(openai, prompts)
    assert texts(together) == [text for one in alone for text in texts(one)]
    assert counts(together) == [5, 24]


async def test_a_stream_tells_all_choices_apart_and_mixes_them(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"n": 2, "max_tokens": 400, "logprobs": 1, "echo": True, **SEEDED}
    asked["extra_body"] = {"ignore_eos": True}
    whole = await complete(openai, **asked)
    stream = await complete(openai, stream=True, stream_options={"include_usage": True}, **asked)
    chunks = [chunk async for chunk in stream]
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    of_each = [[one for one in pieces if one.index == index] for index in range(6)]
    assert ["".join(one.text for one in some) for some in of_each] == texts(whole)
    assert [[one.finish_reason for one in some][-1] for some in of_each] == ["length"] * 6
    tokens = [
        [token for one in some if one.logprobs for token in one.logprobs.tokens] for some in of_each
    ]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    # All run in one batch: each has begun before any has ended.
    first_end = next(at for at, one in enumerate(pieces) if one.finish_reason)
    assert {one.index for one in pieces[:first_end]} == set(range(6))
    ends = [chunk for chunk in chunks if chunk.usage]
    assert len(ends) == 1
    assert (ends[0].usage.prompt_tokens, ends[0].usage.completion_tokens) == tuple(counts(whole))


async def test_every_prompt_is_echoed_and_scored(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 0}
    together, alone = await complete(openai, **asked), await complete_each(openai, PROMPTS, **asked)
    assert texts(together) == PROMPTS
    for choice, one in zip(together.choices, alone, strict=True):
        of_one = one.choices[0].logprobs
        assert choice.logprobs.tokens == of_one.tokens
        assert choice.logprobs.text_offset == of_one.text_offset
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(
            of_one.token_logprobs[1:], abs=1e-2
        )


async def test_the_best_are_those_of_each_prompt(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"n": 2, "best_of": 4, "echo": True, **SEEDED}
    together, alone = await complete(openai, **asked), await complete_each(openai, PROMPTS, **asked)
    assert texts(together) == [text for one in alone for text in texts(one)]
    assert len(together.choices) == 6
    assert counts(together) == counts(*alone)


async def test_a_stop_string_ends_the_answers_that_have_it(openai: AsyncOpenAI) -> None:
    free = texts(await complete(openai, **SEEDED))
    stop = next(
        free[1][at : at + 2]
        for at in range(1, len(free[1]) - 2)
        if free[1][at : at + 2] not in free[0] + free[2]
    )
    stopped = await complete(openai, stop=stop, **SEEDED)
    assert [choice.finish_reason for choice in stopped.choices] == ["length", "stop", "length"]
    assert texts(stopped) == [free[0], free[1][: free[1].index(stop)], free[2]]


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": SHORT, "prompt": [[5], [5] * 70]}, "prompt[1]", "prompt[1] has 70 tokens"),
        ({"prompt": [[5], []]}, "prompt[1]", "prompt[1] is empty"),
        ({"prompt": [[5], [6], [600]]}, "prompt[2]", "Token id 600"),
        ({"prompt": ["a"] * 129}, "prompt", "129 prompts with 1 answers each make 129"),
        ({"prompt": ["a"] * 50, "n": 3}, "prompt", "may ask for 128"),
        ({"prompt": ["a"] * 50, "best_of": 3}, "prompt", "may ask for 128"),
    ],
)
async def test_a_refusal_says_which_prompt_it_is_about(
    server: RunningServer, openai: AsyncOpenAI, changes: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as met:
        await complete(openai, **changes)
    assert met.value.param == param
    assert says in met.value.message
    assert active(server) == 0


async def test_as_many_prompts_as_may_be(openai: AsyncOpenAI) -> None:
    answer = await complete(openai, prompt=[f"No. {number}" for number in range(64)], n=2)
    assert len(texts(answer)) == 128
    assert texts(answer)[::2] == texts(answer)[1::2]


async def test_one_trace_and_one_row_count_all_prompts(
    server: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    prompts = ["A trace of its own", "and another prompt " * 5]
    answer = await complete(openai, prompt=prompts, n=2, max_tokens=10)
    found = await attributes_of(spans, answer)
    assert sorted(found) == [
        *("decode", "prefill", "queue", "route", "text_completion test/plain", "tokenize")
    ]
    chat, prefill = found["text_completion test/plain"], found["prefill"]
    input_tokens, output_tokens = counts(answer)
    read_tokens = prefill["mlx.prefill.tokens"] + prefill["mlx.cache.matched_tokens"]
    assert (chat["mlx.request.prompts"], chat["gen_ai.request.choice.count"]) == (2, 2)
    assert chat["gen_ai.response.finish_reasons"] == ("length",) * 4
    assert chat["gen_ai.usage.input_tokens"] == input_tokens
    assert chat["gen_ai.usage.output_tokens"] == output_tokens == 40
    assert found["decode"]["mlx.decode.tokens"] == 40
    assert read_tokens == input_tokens
    row = await row_of(server, answer.id.removeprefix("cmpl-"))
    assert (row.input_tokens, row.output_tokens) == (input_tokens, 40)


async def test_prompts_that_were_all_read_before_are_a_hit(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    prompts = ["Read this twice. " * 4, "And that one, too. " * 4]
    await complete(openai, prompt=prompts)
    again = await complete(openai, prompt=prompts)
    found = await attributes_of(spans, again)
    cached_tokens = again.usage.prompt_tokens_details.cached_tokens
    assert cached_tokens == again.usage.prompt_tokens - 2
    assert found["prefill"]["mlx.cache.matched_tokens"] == cached_tokens
    assert found["prefill"]["mlx.cache.outcome"] == "hit"


async def test_a_client_that_leaves_frees_the_places_of_all_prompts(
    server: RunningServer, openai: AsyncOpenAI
) -> None:
    stream = await complete(openai, n=2, max_tokens=ENDLESS_TOKENS, stream=True)
    await anext(aiter(stream))
    assert active(server) == 6
    await stream.close()
    await eventually(lambda: active(server) == 0)


async def attributes_of(spans: Spans, answer: Completion) -> dict[str, dict[str, Any]]:
    """The attributes of each span of an answer, by the span's name."""
    return {span.name: dict(span.attributes or {}) for span in await spans.of_answer(answer.id)}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server with two places, two to wait in, and 1 MiB for keys and values."""
    folder = tmp_path_factory.mktemp("narrow")
    settings = settings_for(folder, model_dir, max_batch=2, max_waiting=2, kv_budget_mib=1)
    with running(create_app(settings)) as server:
        yield server


async def test_prompts_wait_for_places_and_are_all_refused_where_there_are_too_few(
    narrow: RunningServer, spans: Spans
) -> None:
    async with AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=0) as openai:
        four = await complete(openai, prompt=["a", "b", "c", "d"])
        assert texts(four) == [
            text for one in await complete_each(openai, ["a", "b", "c", "d"]) for text in texts(one)
        ]
        with pytest.raises(sdk.InternalServerError) as met:
            await complete(openai, prompt=["a", "b", "c", "d", "e"])
    assert met.value.code == "overloaded"
    assert active(narrow) == 0
    ahead = [link for span in await spans.of_answer(four.id) for link in span.links]
    assert ahead == [], "it waited behind nobody but itself"


async def test_what_one_prompt_has_no_memory_for_ends_all(narrow: RunningServer) -> None:
    async with AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=0) as openai:
        with pytest.raises(sdk.BadRequestError) as met:
            await complete(openai, model="test/tiny", prompt=[[5], [5] * 3000], max_tokens=1000)
        assert met.value.code == "memory_exceeded"
        await eventually(lambda: active(narrow) == 0)


def active(server: RunningServer) -> int:
    engines = [one.engine for one in server.pool.residents]
    return sum(engine.active_sequences for engine in engines if engine is not None)
