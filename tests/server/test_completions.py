"""`POST /v1/completions`, with the `openai` package."""

from __future__ import annotations

import time
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types import Completion


async def ask(client: AsyncOpenAI, **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"model": "test/plain", "prompt": "Once", "temperature": 0}
    answer: Completion = await client.completions.create(**(arguments | changes))
    return answer


async def test_a_text_is_continued_by_16_tokens_when_nothing_else_is_said(
    openai: AsyncOpenAI,
) -> None:
    answer = await ask(openai)
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_an_answer_has_these_values_and_nothing_besides(openai: AsyncOpenAI) -> None:
    before = int(time.time())
    answer = await ask(openai)
    told: Any = answer.to_dict()
    assert before <= told.pop("created") <= time.time()
    assert told.pop("system_fingerprint").startswith("fp_")
    usage = told.pop("usage")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert told == {
        "id": f"cmpl-{answer._request_id}",
        "object": "text_completion",
        "model": "test/plain",
        "choices": [
            {
                "index": 0,
                "text": answer.choices[0].text,
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
    }


async def test_token_ids_and_single_item_lists_are_prompts_too(openai: AsyncOpenAI) -> None:
    first = await ask(openai, prompt=[5, 6, 7])
    assert first.usage is not None
    assert first.usage.prompt_tokens == 3
    assert (await ask(openai, prompt=[[5, 6, 7]])).choices[0].text == first.choices[0].text
    assert (await ask(openai, prompt=["Once"])).choices[0].text == (await ask(openai)).choices[
        0
    ].text


async def test_a_stream_carries_the_same_text(openai: AsyncOpenAI) -> None:
    whole = await ask(openai)
    stream = await openai.completions.create(
        model="test/plain", prompt="Once", temperature=0, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


async def test_a_prompt_equal_to_an_earlier_prompt_and_its_answer_is_answered(
    openai: AsyncOpenAI,
) -> None:
    """The request that ends mlx-lm's own server for good."""
    prompt, said = list(range(100, 130)), [40] * 4
    first = await ask(openai, prompt=prompt, max_tokens=4, logit_bias={"40": 100})
    again = await ask(openai, prompt=prompt + said, max_tokens=4)
    assert first.usage is not None
    assert again.usage is not None
    assert first.usage.completion_tokens == again.usage.completion_tokens == 4
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == len(prompt + said) - 1
    repeated = await ask(openai, prompt=prompt, max_tokens=4, logit_bias={"40": 100})
    assert repeated.choices[0].text == first.choices[0].text


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [600]},
        {"prompt": [-1]},
        {"extra_body": {"logprobs": True}},
        {"logprobs": 21},
        {"max_tokens": -1},
        {"extra_body": {"min_tokens": 17}},
        {"extra_body": {"top_logprobs": 2}},
        {"suffix": "end"},
        {"extra_body": {"best_of": 0}},
    ],
)
async def test_what_is_wrong_or_not_supported_is_a_400_that_names_it(
    openai: AsyncOpenAI, changes: dict[str, Any]
) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        await ask(openai, **changes)
    named = next(iter(changes.get("extra_body", changes)))
    assert refusal.value.param == named
