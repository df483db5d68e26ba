"""`echo` with `logprobs`: how likely a model finds a text, as evaluation harnesses ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from openai import AsyncOpenAI
from openai.types import Completion
from tokenizers import Tokenizer

PLAIN = "test/plain"
TEXT = "Once upon a time, na\u00efve caf\u00e9s \u2615 stood in rows. " * 6


async def complete(client: AsyncOpenAI, **changes: Any) -> Completion:
    arguments: dict[str, Any] = {
        "model": PLAIN,
        "prompt": TEXT,
        "temperature": 0,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    }
    answer: Completion = await client.completions.create(**(arguments | changes))
    return answer


def logprobs_of(answer: Completion) -> Any:
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return logprobs


def scored(model_dir: Path, token_ids: list[int]) -> list[float]:
    """What one forward pass over all tokens says of each but the first."""
    model: Any = load_model(model_dir / PLAIN)[0]
    logits = model(mx.array([token_ids]))[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return [float(logprobs[at, token_id].item()) for at, token_id in enumerate(token_ids[1:])]


def encoded(model_dir: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(model_dir / PLAIN / "tokenizer.json")).encode(text).ids
    return ids


async def test_a_text_is_scored_as_one_forward_pass_scores_it(
    openai: AsyncOpenAI, model_dir: Path
) -> None:
    token_ids = encoded(model_dir, TEXT)
    answer = await complete(openai)
    logprobs = logprobs_of(answer)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(token_ids), 0)
    assert len(logprobs.tokens) == len(token_ids)
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert logprobs.token_logprobs[1:] == pytest.approx(scored(model_dir, token_ids), abs=1e-2)
    for token, logprob, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        # How a harness finds out whether the model would have said just this.
        assert top[token] == logprob <= max(top.values())


async def test_tokens_stand_where_their_offsets_say(openai: AsyncOpenAI) -> None:
    logprobs = logprobs_of(await complete(openai))
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or TEXT[offset : offset + len(token)] == token


async def test_twice_the_same_although_the_prompt_is_cached_by_now(openai: AsyncOpenAI) -> None:
    await complete(openai, echo=False, logprobs=None, max_tokens=4)
    first, second = await complete(openai), await complete(openai)
    assert logprobs_of(first) == logprobs_of(second)
    assert first.usage is not None
    assert first.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens == 0


async def test_the_body_of_an_evaluation_harness(
    openai: AsyncOpenAI, http: httpx.AsyncClient, model_dir: Path
) -> None:
    token_ids = encoded(model_dir, TEXT)
    body = {
        "model": PLAIN,
        "prompt": [token_ids],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = (await http.post("/v1/completions", json=body)).json()
    [choice] = answer["choices"]
    of_text = logprobs_of(await complete(openai))
    assert len(choice["logprobs"]["token_logprobs"]) == len(token_ids) + 1
    assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(
        of_text.token_logprobs[1:], abs=1e-3
    )
    assert choice["logprobs"]["text_offset"][-1] == len(TEXT)
    assert choice["text"].startswith(TEXT)


async def test_a_stream_and_every_choice_begin_with_the_scored_prompt(openai: AsyncOpenAI) -> None:
    whole = await complete(openai, max_tokens=6, n=2, temperature=1, seed=3)
    arguments: dict[str, Any] = {"max_tokens": 6, "n": 2, "temperature": 1, "seed": 3}
    stream: Any = await complete(openai, stream=True, **arguments)
    texts, tokens = ["", ""], [list[str](), list[str]()]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 2
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs]


async def test_the_best_is_chosen_by_what_was_written(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 1, "seed": 3, "prompt": "Once"}
    for_all = await complete(openai, n=4, echo=False, logprobs=0, **asked)

    def mean(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))

    best = max(for_all.choices, key=mean)
    echoed = await complete(openai, best_of=4, logprobs=None, **asked)
    assert echoed.choices[0].text == "Once" + best.text
    assert echoed.choices[0].logprobs is None


async def test_nothing_is_written_where_nothing_is_wanted(openai: AsyncOpenAI) -> None:
    answer = await complete(openai, echo=False, logprobs=None)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "length")


async def test_a_prompt_may_fill_the_context_when_nothing_comes_behind_it(
    openai: AsyncOpenAI,
) -> None:
    answer = await complete(openai, model="test/short", prompt=[5] * 64)
    assert len(logprobs_of(answer).tokens) == 64
