"""Penalties, biases, ends and log-probabilities, asked for with the `openai` package."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from tokenizers import Tokenizer

from tests.server.test_chat_completions import ask, ask_streamed, content_of, text_of
from tests.server.test_tools import QUESTION, WEATHER

PLAIN, STARTER = "test/plain", "mlx-manager/starter"


async def complete(client: AsyncOpenAI, **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"model": PLAIN, "prompt": "Once", "temperature": 0}
    answer: Completion = await client.completions.create(**(arguments | changes))
    return answer


def logprobs_of(answer: ChatCompletion) -> list[ChatCompletionTokenLogprob]:
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    return logprobs.content


async def test_a_greedy_answer_is_made_of_the_most_likely_tokens(openai: AsyncOpenAI) -> None:
    answer = await ask(openai, logprobs=True, top_logprobs=20)
    tokens = logprobs_of(answer)
    assert len(tokens) == 40
    for token in tokens:
        assert (token.token, token.logprob) == (
            token.top_logprobs[0].token,
            token.top_logprobs[0].logprob,
        )
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 20
        assert 20 / 512 < sum(map(math.exp, values)) < 1
    assert bytes_of(tokens).decode(errors="replace") == content_of(answer)


def bytes_of(tokens: list[ChatCompletionTokenLogprob]) -> bytes:
    return b"".join(bytes(token.bytes or ()) for token in tokens)


async def test_behind_thoughts_the_tokens_that_have_logprobs_are_those_of_the_text(
    openai: AsyncOpenAI,
) -> None:
    # A line break or two stand between them, and are part of neither.
    answer = await ask(openai, model=STARTER, logprobs=True, reasoning_effort="low", max_tokens=200)
    text = answer.choices[0].message.content
    assert text
    assert "".join(token.token for token in logprobs_of(answer)) == text


async def test_logprobs_change_no_answer_and_come_only_when_asked_for(openai: AsyncOpenAI) -> None:
    seeded: dict[str, Any] = {"temperature": 1, "seed": 5}
    plain = await ask(openai, **seeded)
    alone = await ask(openai, logprobs=True, **seeded)
    assert content_of(alone) == content_of(plain)
    assert plain.choices[0].logprobs is None
    assert {len(token.top_logprobs) for token in logprobs_of(alone)} == {0}


async def test_a_stream_carries_the_same_logprobs_with_the_text_they_belong_to(
    openai: AsyncOpenAI,
) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 200}
    whole, chunks = await ask(openai, **asked), await ask_streamed(openai, **asked)
    streamed, text = list[ChatCompletionTokenLogprob](), ""
    for chunk in chunks:
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []
        text += chunk.choices[0].delta.content or ""
        # All tokens whose text has come, and none whose text hasn't.
        assert bytes_of(streamed).decode(errors="replace").startswith(text)
        assert len(bytes_of(streamed[:-1]).decode(errors="replace")) <= len(text)
    assert text == content_of(whole)
    assert [token.token for token in streamed] == [token.token for token in logprobs_of(whole)]
    assert [token.logprob for token in streamed] == pytest.approx(
        [token.logprob for token in logprobs_of(whole)], abs=1e-3
    )


async def test_tokens_behind_a_stop_string_have_no_logprobs(openai: AsyncOpenAI) -> None:
    whole = content_of(await ask(openai))
    for start in range(2, len(whole) - 4):
        stop = whole[start : start + 3]
        answer = await ask(openai, stop=stop, logprobs=True)
        text, tokens = content_of(answer), logprobs_of(answer)
        assert text == whole[: whole.index(stop)]
        assert bytes_of(tokens).decode(errors="replace").startswith(text)
        assert len(bytes_of(tokens[:-1]).decode(errors="replace")) <= len(text)


def token_id_of(model_dir: Path, model: str, name: str) -> str:
    """The id of a token by its name in the tokenizer's own writing, as `logit_bias` wants it."""
    token_id = Tokenizer.from_file(str(model_dir / model / "tokenizer.json")).token_to_id(name)
    assert token_id is not None
    return str(token_id)


async def test_half_a_character_shows_its_bytes(openai: AsyncOpenAI, model_dir: Path) -> None:
    # Byte 0xE2, which begins characters of three bytes, in the writing of GPT-2's tokenizer.
    forced: dict[str, Any] = {
        "logit_bias": {token_id_of(model_dir, "test/tiny", "\u00e2"): 100},
        "max_tokens": 3,
    }
    answer = await ask(openai, logprobs=True, **forced)
    tokens = logprobs_of(answer)
    assert [token.token for token in tokens] == ["\N{REPLACEMENT CHARACTER}"] * 3
    assert [token.bytes for token in tokens] == [[0xE2]] * 3
    text = await complete(openai, model="test/tiny", logprobs=1, **forced)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens == ["bytes:\\xe2"] * 3


async def test_a_bias_of_100_forces_a_token_and_of_minus_100_bans_it(
    openai: AsyncOpenAI, model_dir: Path
) -> None:
    letter = token_id_of(model_dir, PLAIN, "Z")
    forced = await complete(openai, logit_bias={letter: 100}, max_tokens=10, logprobs=0)
    assert forced.choices[0].text == "Z" * 10
    # The log-probabilities are the model's own: the bias isn't in them.
    logprobs = forced.choices[0].logprobs
    assert logprobs is not None
    assert min(logprobs.token_logprobs or ()) < -1
    likely: dict[str, Any] = {"extra_body": {"ignore_eos": True}, "max_tokens": 1000}
    free = await complete(openai, temperature=2, seed=1, **likely)
    banned = await complete(openai, temperature=2, seed=1, logit_bias={letter: -100}, **likely)
    assert "Z" in free.choices[0].text
    assert "Z" not in banned.choices[0].text


async def test_repeats_become_rarer_with_each_penalty(openai: AsyncOpenAI) -> None:
    def most_frequent(answer: Completion) -> int:
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        return Counter(logprobs.tokens or ()).most_common(1)[0][1]

    asked: dict[str, Any] = {"max_tokens": 60, "logprobs": 0}
    plain = most_frequent(await complete(openai, **asked))
    assert plain > 10
    for penalty in (
        {"frequency_penalty": 1},
        {"presence_penalty": 2},
        {"extra_body": {"repetition_penalty": 1.8}},
    ):
        assert most_frequent(await complete(openai, **asked, **penalty)) < plain
    rewarded = await complete(openai, **asked, frequency_penalty=-2)
    assert most_frequent(rewarded) >= plain


async def test_an_answer_goes_on_behind_its_end_when_it_shall(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": STARTER,
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 120,
    }
    ended = await ask(openai, **asked)
    assert ended.choices[0].finish_reason == "stop"
    assert ended.usage is not None
    for fields, least in (({"ignore_eos": True}, 120), ({"min_tokens": 90}, 90)):
        answer = await ask(openai, **asked, extra_body=fields, logprobs=True)
        assert answer.usage is not None
        assert answer.usage.completion_tokens >= least > ended.usage.completion_tokens
        assert content_of(answer).startswith(content_of(ended))
    with_all = await ask(openai, **asked, extra_body={"ignore_eos": True}, logprobs=True)
    assert with_all.choices[0].finish_reason == "length"
    assert len(logprobs_of(with_all)) == 120


async def test_an_end_is_no_token_of_the_text(openai: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    answer = await ask(openai, model=STARTER, messages=messages, max_tokens=120, logprobs=True)
    assert answer.usage is not None
    assert bytes_of(logprobs_of(answer)).decode() == content_of(answer)
    assert len(logprobs_of(answer)) == answer.usage.completion_tokens - 1


async def test_xtc_takes_the_most_likely_tokens_away(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"temperature": 1, "seed": 1, "logprobs": True, "top_logprobs": 1}
    always = {"xtc_probability": 1, "xtc_threshold": 0.01}
    plain, excluded = await ask(openai, **asked), await ask(openai, **asked, extra_body=always)

    def tops(answer: ChatCompletion) -> int:
        return sum(one.token == one.top_logprobs[0].token for one in logprobs_of(answer))

    assert tops(excluded) < tops(plain)


CROWD: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"frequency_penalty": 1},
    {"logprobs": True, "top_logprobs": 5},
    {"logit_bias": {"70": 5}},
    {"seed": 3, "presence_penalty": 1},
    {"extra_body": {"repetition_penalty": 1.3, "xtc_probability": 0.5}},
]


@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"frequency_penalty": 0.7, "logprobs": True, "top_logprobs": 3},
        {
            "extra_body": {"repetition_penalty": 1.2, "xtc_probability": 0.5},
            "presence_penalty": 0.5,
        },
    ],
)
async def test_a_seeded_answer_is_the_same_alone_and_among_seven_others(
    openai: AsyncOpenAI, controls: dict[str, Any]
) -> None:
    seeded: dict[str, Any] = {"temperature": 1, "seed": 7, "max_tokens": 60, **controls}
    alone = await ask(openai, **seeded)
    crowd = [ask(openai, **{"temperature": 1, "max_tokens": 80, **fields}) for fields in CROWD]
    among, *_ = await asyncio.gather(ask(openai, **seeded), *crowd)
    assert content_of(among) == content_of(alone)
    assert among.system_fingerprint == alone.system_fingerprint
    assert content_of(await ask(openai, **(seeded | {"seed": 8}))) != content_of(alone)


async def test_the_older_form_has_offsets_and_the_token_itself_among_the_likely_ones(
    openai: AsyncOpenAI,
) -> None:
    answer = await complete(
        openai, model=STARTER, temperature=1, seed=2, logprobs=2, extra_body={"min_tokens": 16}
    )
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert logprobs is not None
    tokens, offsets = logprobs.tokens or [], logprobs.text_offset or []
    assert len(tokens) == 16
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        assert text.startswith(token, offset)
    for token, logprob, top in zip(
        tokens, logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3


async def test_a_streamed_completion_has_the_same_logprobs(openai: AsyncOpenAI) -> None:
    whole = await complete(openai, logprobs=1, max_tokens=60)
    stream = await openai.completions.create(
        model=PLAIN, prompt="Once", temperature=0, logprobs=1, max_tokens=60, stream=True
    )
    parts = [one.choices[0].logprobs async for one in stream if one.choices[0].logprobs]
    assert whole.choices[0].logprobs is not None
    for name in ("tokens", "text_offset"):
        streamed = [value for part in parts for value in getattr(part, name)]
        assert streamed == getattr(whole.choices[0].logprobs, name)


@pytest.mark.parametrize("prompt", ["Once upon \N{SNOWMAN}", [5, 2, 66, 67]])
async def test_an_echo_is_the_prompt_before_the_answer(openai: AsyncOpenAI, prompt: Any) -> None:
    answer = (await complete(openai, prompt=prompt)).choices[0].text
    echoed = await complete(openai, prompt=prompt, echo=True)
    text = echoed.choices[0].text
    assert text.endswith(answer)
    echo = text.removesuffix(answer)
    assert echo == prompt if isinstance(prompt, str) else "<|im_end|>" in echo
    stream = await openai.completions.create(
        model=PLAIN, prompt=prompt, temperature=0, echo=True, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == text
    assert echoed.usage is not None
    assert echoed.usage.completion_tokens == 16


async def test_a_fingerprint_tells_models_apart_and_stays_the_same(openai: AsyncOpenAI) -> None:
    first, again, other = (
        await complete(openai),
        await complete(openai),
        await complete(openai, model="test/tiny"),
    )
    assert first.system_fingerprint == again.system_fingerprint != other.system_fingerprint
    assert str(first.system_fingerprint).startswith("fp_")
    chunks = await ask_streamed(openai)
    assert {chunk.system_fingerprint for chunk in chunks} == {other.system_fingerprint}
    assert text_of(chunks)


async def test_thoughts_and_calls_have_no_logprobs_and_the_answer_beside_them_has(
    openai: AsyncOpenAI,
) -> None:
    asked: dict[str, Any] = {"model": STARTER, "max_tokens": 300, "logprobs": True}
    question = [{"role": "user", "content": QUESTION}]
    called = await ask(openai, messages=question, tools=[WEATHER], **asked)
    assert called.choices[0].finish_reason == "tool_calls"
    assert logprobs_of(called) == []
    sums = [{"role": "user", "content": "What is 17 plus 25?"}]
    for stop in (None, "zzz"):
        thought = await ask(openai, messages=sums, reasoning_effort="high", stop=stop, **asked)
        assert thought.usage is not None
        details = thought.usage.completion_tokens_details
        assert details is not None
        assert details.reasoning_tokens
        written = bytes_of(logprobs_of(thought)).decode()
        assert written.strip() == content_of(thought).strip()
