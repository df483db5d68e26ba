"""`POST /v1/chat/completions`, called as people call it: with the `openai` package."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_manager.wire.openai.parameters import HARMLESS

MODEL = "test/tiny"
MESSAGES: list[Any] = [{"role": "user", "content": "Count to a million."}]


async def ask(client: AsyncOpenAI, **changes: Any) -> ChatCompletion:
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 40,
    }
    answer: ChatCompletion = await client.chat.completions.create(**(arguments | changes))
    return answer


async def ask_streamed(client: AsyncOpenAI, **changes: Any) -> list[ChatCompletionChunk]:
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 40,
    }
    stream = await client.chat.completions.create(stream=True, **(arguments | changes))
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def content_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


async def test_an_answer_has_every_field_that_the_api_reference_promises(
    openai: AsyncOpenAI,
) -> None:
    answer = await ask(openai)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert 0 <= cached < answer.usage.prompt_tokens


async def test_an_answer_has_these_values_and_nothing_besides(openai: AsyncOpenAI) -> None:
    before = int(time.time())
    answer = await ask(openai)
    told: Any = answer.to_dict()
    assert before <= told.pop("created") <= time.time()
    assert told.pop("system_fingerprint").startswith("fp_")
    read = told["usage"].pop("prompt_tokens")
    cached = told["usage"]["prompt_tokens_details"].pop("cached_tokens")
    assert 0 <= cached < read
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content_of(answer),
        "refusal": None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    of_prompt = {
        "text_tokens": read,
        "cache_write_tokens": 0,
        "audio_tokens": 0,
        "image_tokens": 0,
    }
    of_answer = {
        "text_tokens": 40,
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    assert told == {
        "id": f"chatcmpl-{answer._request_id}",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [choice],
        "usage": {
            "completion_tokens": 40,
            "total_tokens": read + 40,
            "prompt_tokens_details": of_prompt,
            "completion_tokens_details": of_answer,
        },
    }


async def test_each_chunk_says_which_answer_it_is_of_and_nothing_besides(
    openai: AsyncOpenAI,
) -> None:
    before = int(time.time())
    stream = await openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=40, stream=True
    )
    answer_id = f"chatcmpl-{stream.response.headers['X-Request-ID']}"
    chunks: list[Any] = [chunk.to_dict() async for chunk in stream]
    created = {chunk["created"] for chunk in chunks}
    assert len(created) == 1
    assert before <= created.pop() <= time.time()
    deltas = [chunk.pop("choices")[0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(delta) == ["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint"}
        assert (chunk["id"], chunk["model"]) == (answer_id, MODEL)


async def test_a_stream_carries_the_same_text_as_the_whole_answer(openai: AsyncOpenAI) -> None:
    # Long enough to come in pieces from a server that has no processor to itself.
    whole, chunks = await ask(openai, max_tokens=400), await ask_streamed(openai, max_tokens=400)
    assert text_of(chunks) == content_of(whole)
    assert len(chunks) > 3


async def test_a_stream_opens_with_the_role_and_closes_with_the_reason(openai: AsyncOpenAI) -> None:
    chunks = await ask_streamed(openai)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].choices[0].delta.content is None
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_in_a_last_chunk_when_it_is_asked_for(openai: AsyncOpenAI) -> None:
    chunks = await ask_streamed(openai, stream_options={"include_usage": True})
    *others, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 40
    assert all(chunk.usage is None for chunk in others)


async def test_temperature_zero_gives_the_same_answer_every_time(openai: AsyncOpenAI) -> None:
    first, second = await asyncio.gather(ask(openai), ask(openai))
    assert content_of(first) == content_of(second)


async def test_a_seed_gives_the_same_answer_whatever_else_runs(openai: AsyncOpenAI) -> None:
    seeded: dict[str, Any] = {"temperature": 1, "seed": 7}
    alone = content_of(await ask(openai, **seeded))
    crowd = [ask(openai, temperature=1) for _ in range(5)]
    among_others, *_ = await asyncio.gather(ask(openai, **seeded), *crowd)
    assert content_of(among_others) == alone
    assert content_of(await ask(openai, temperature=1, seed=8)) != alone


@pytest.mark.parametrize(
    "narrow", [{"extra_body": {"top_k": 1}}, {"top_p": 0}, {"extra_body": {"min_p": 1}}]
)
async def test_each_sampling_parameter_reaches_the_sampler(
    openai: AsyncOpenAI, narrow: dict[str, Any]
) -> None:
    greedy = content_of(await ask(openai))
    assert content_of(await ask(openai, temperature=2, **narrow)) == greedy
    assert content_of(await ask(openai, temperature=2)) != greedy


async def test_max_completion_tokens_is_the_limit_when_both_are_given(openai: AsyncOpenAI) -> None:
    answer = await ask(openai, max_tokens=30, max_completion_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


async def test_an_answer_ends_before_a_stop_string_wherever_it_lies(openai: AsyncOpenAI) -> None:
    whole = content_of(await ask(openai))
    for start in range(1, len(whole) - 4):
        stop = whole[start : start + 3]
        answer = await ask(openai, stop=stop)
        assert content_of(answer) == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


async def test_usage_counts_up_to_the_token_that_completes_a_stop_string(
    openai: AsyncOpenAI,
) -> None:
    whole = await ask(openai, logprobs=True)
    assert whole.choices[0].logprobs is not None
    tokens = [one.token for one in whole.choices[0].logprobs.content or ()]
    stop = content_of(whole)[10:13]
    needed = next(count for count in range(len(tokens)) if stop in "".join(tokens[:count]))
    answer = await ask(openai, stop=stop)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == needed


async def test_several_stop_strings_hold_in_a_stream_too(openai: AsyncOpenAI) -> None:
    whole = content_of(await ask(openai))
    stops = [whole[20:24], "never to be seen", whole[10:13]]
    chunks = await ask_streamed(openai, stop=stops)
    assert text_of(chunks) == whole[: min(whole.find(stop) for stop in (stops[0], stops[2]))]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_an_answer_fills_the_context_and_no_more(openai: AsyncOpenAI) -> None:
    answer = await ask(openai, model="test/short", max_tokens=1000)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 64
    assert answer.choices[0].finish_reason == "length"


async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(
    openai: AsyncOpenAI,
) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(sdk.BadRequestError, match="takes 64 with the answer") as refusal:
        await ask(openai, model="test/short", messages=long)
    assert refusal.value.code == "context_length_exceeded"
    assert refusal.value.param == "messages"


async def test_an_unknown_model_is_a_404_with_the_ids_that_exist(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.NotFoundError, match="mlx-manager/starter") as refusal:
        await ask(openai, model="no/{such}")
    assert refusal.value.code == "model_not_found"
    assert "test/tiny" in str(refusal.value)


async def test_a_model_without_a_template_says_so(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="no chat template"):
        await ask(openai, model="test/plain")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("nonsense", 1),
    ],
)
async def test_what_would_change_the_answer_and_is_not_supported_is_refused_by_name(
    openai: AsyncOpenAI, name: str, value: Any
) -> None:
    with pytest.raises(sdk.BadRequestError, match=f"'{name}'") as refusal:
        await ask(openai, extra_body={name: value})
    assert (refusal.value.param, refusal.value.code) == (name, "unsupported_parameter")


async def test_what_can_not_change_the_answer_is_accepted(openai: AsyncOpenAI) -> None:
    plain = content_of(await ask(openai))
    labels = dict.fromkeys(HARMLESS, "x") | {"metadata": {"a": "b"}, "store": True}
    assert content_of(await ask(openai, extra_body=labels)) == plain


async def test_the_values_that_mean_not_used_are_accepted(openai: AsyncOpenAI) -> None:
    unused = {
        "n": 1,
        "logprobs": False,
        "tools": [],
        "frequency_penalty": 0.0,
        "response_format": {"type": "text"},
        "logit_bias": None,
    }
    await ask(openai, extra_body=unused)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"temperature": 3},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"stop": ""},
        {"stop": ["x"] * 17},
        {"extra_body": {"top_k": 10**30}},
        {"extra_body": {"top_k": "many"}},
        {"stream_options": {"include_usage": True}},
        {"extra_body": {"chat_template_kwargs": {"messages": []}}},
        {"top_logprobs": 3},
        {"top_logprobs": 21, "logprobs": True},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"word": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"512": 1}},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"extra_body": {"repetition_penalty": 0}},
        {"extra_body": {"xtc_probability": 1.1}},
        {"extra_body": {"xtc_threshold": 0.6}},
        {"extra_body": {"min_tokens": 41}},
        {"extra_body": {"ignore_eos": "often"}},
        {"extra_body": {"echo": True}},
    ],
)
async def test_nonsense_is_a_400_in_the_shape_that_the_sdk_reads(
    openai: AsyncOpenAI, changes: dict[str, Any]
) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        await ask(openai, **changes)
    assert refusal.value.type == "invalid_request_error"
    assert str(refusal.value.param).startswith(next(iter(changes.get("extra_body", changes))))


async def test_content_in_parts_reads_like_content_in_one_piece(openai: AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "Count to "}, {"type": "text", "text": "a million."}]
    answer = await ask(openai, messages=[{"role": "user", "content": parts}])
    assert content_of(answer) == content_of(await ask(openai))


async def test_a_developer_message_is_a_system_message(openai: AsyncOpenAI) -> None:
    answers = [
        await ask(openai, messages=[{"role": role, "content": "Be brief."}, *MESSAGES])
        for role in ("system", "developer")
    ]
    assert content_of(answers[0]) == content_of(answers[1])


async def test_variables_for_the_template_are_passed_on(openai: AsyncOpenAI) -> None:
    plain, shouted, hushed = [
        await ask(openai, extra_body={"chat_template_kwargs": variables})
        for variables in ({}, {"shout": True}, {"shout": False, "enable_thinking": True})
    ]
    assert shouted.usage is not None
    assert plain.usage is not None
    assert shouted.usage.prompt_tokens > plain.usage.prompt_tokens
    assert hushed.usage == plain.usage
