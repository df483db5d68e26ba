"""How an answer's tokens are chosen and told: `n`, penalties, biases, seeds, limits, and tokens themselves."""

from __future__ import annotations

from typing import Any

from mlx_manager.conformance.check import Check
from mlx_manager.conformance.subject import (
    CHAT,
    TEXT,
    NotApplicable,
    Subject,
    asking,
    deltas_of,
    error_of,
    expect,
    joined,
    only_choice,
    said,
    text_of,
)
from mlx_manager.conformance.words import COUNT_TO_TEN, QUESTION, WEATHER

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
PROMPT = "Once upon a time"
# A bias of 100 is taken away by a frequency penalty of 2 within 51 tokens, whatever the model would say.
FORCED, PENALTY, WITHIN = 100, 2, 56
PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


async def choices(subject: Subject) -> None:
    """`n` answers have their own numbers; the prompt is counted once, and all that is written."""
    asked: dict[str, Any] = {"temperature": 1, "seed": 7, "max_tokens": 8}
    one = await subject.chat(COUNT_TO_TEN, **asked)
    answer = await subject.chat(COUNT_TO_TEN, n=2, **asked)
    expect([choice["index"] for choice in answer["choices"]] == [0, 1], "not two, in order")
    read = [each["usage"]["prompt_tokens"] for each in (one, answer)]
    expect(read[0] == read[1], f"the prompt has {read} tokens")
    first = answer["choices"][0]["message"]["content"]
    expect((first or "") == text_of(one), "the first is not what it is alone")


async def choices_streamed(subject: Subject) -> None:
    """Streamed, each of `n` answers has one role and one end."""
    chunks = await subject.chat_chunks(COUNT_TO_TEN, n=2, max_tokens=8)
    for index in (0, 1):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        roles = [delta["role"] for delta in deltas_of(own) if delta.get("role")]
        ends = [chunk["choices"][0]["finish_reason"] for chunk in own]
        expect(roles == ["assistant"], f"choice {index} has the roles {roles}")
        expect(len(list(filter(None, ends))) == 1, f"choice {index} ends with {ends}")


async def seeds(subject: Subject) -> None:
    """A seed gives the same text whole and streamed, and the fingerprint says that it can."""
    drawn: dict[str, Any] = {"temperature": 1, "seed": 11, "max_tokens": 12}
    whole = await subject.chat(COUNT_TO_TEN, **drawn)
    chunks = await subject.chat_chunks(COUNT_TO_TEN, **drawn)
    expect(joined(chunks) == text_of(whole), "the stream says something else")
    marks = {whole.get("system_fingerprint"), *(one.get("system_fingerprint") for one in chunks)}
    expect(len(marks) == 1, f"fingerprints are {marks}")


async def bias(subject: Subject) -> None:
    """A bias of 100 forces a token, and one of -100 bans it."""
    token = await _a_token(subject)
    forced = await _continued(subject, 4, logit_bias={str(token): FORCED})
    plain = only_choice(await subject.answer(TEXT, _writing(4)))["text"]
    banned = await _continued(subject, 4, logit_bias={str(token): -FORCED})
    expect(forced == forced[: len(forced) // 4] * 4, f"forced, it writes {forced!r}")
    expect(forced not in banned, f"banned, it writes {banned!r}, and {plain!r} otherwise")


async def penalties(subject: Subject) -> None:
    """A penalty for each repetition ends one that a bias forces; what is out of range is refused by name."""
    token = await _a_token(subject)
    biased: dict[str, Any] = {"logit_bias": {str(token): FORCED}}
    forced = await _continued(subject, WITHIN, **biased)
    lighter = await _continued(subject, WITHIN, **biased, frequency_penalty=PENALTY)
    expect(forced != lighter, "the penalty changes nothing")
    for name in PENALTIES:
        refused = await subject.post(CHAT, asking("x", **{name: 2.5}))
        expect(refused.status_code == 400, f"{name}: {said(refused)}")
        expect(error_of(refused)["param"] == name, f"param is {error_of(refused)['param']!r}")


async def ignoring_the_end(subject: Subject) -> None:
    """With `ignore_eos` an answer has all of its `max_tokens`."""
    answer = await subject.answer(TEXT, {**_writing(12), "ignore_eos": True})
    expect(answer["usage"]["completion_tokens"] == 12, f"it has {answer['usage']}")


async def tokens_there_and_back(subject: Subject) -> None:
    """A text's tokens make the same text again."""
    tokens = await _tokens(subject, {"prompt": PROMPT, "add_special_tokens": False})
    expect(tokens["count"] == len(tokens["tokens"]), f"count is {tokens['count']}")
    back = await subject.answer(DETOKENIZE, {"tokens": tokens["tokens"]})
    expect(back["prompt"].strip() == PROMPT, f"it is {back['prompt']!r}")


async def tokens_of_a_chat(subject: Subject) -> None:
    """A conversation with tools has as many tokens as its answer's usage says."""
    asked: dict[str, Any] = {"messages": asking(QUESTION)["messages"], "tools": [WEATHER]}
    counted = (await _tokens(subject, asked))["count"]
    answer = await subject.answer(CHAT, {**asked, "max_tokens": 1})
    used = answer["usage"]["prompt_tokens"]
    expect(counted == used, f"{counted} tokens are counted, and {used} were read")


async def _tokens(subject: Subject, body: dict[str, Any]) -> dict[str, Any]:
    response = await subject.post(TOKENIZE, body)
    if response.status_code == 404 and error_of(response).get("code") == "not_found":
        raise NotApplicable("the server has no /v1/tokenize")
    expect(response.status_code == 200, said(response))
    return dict(response.json())


async def _a_token(subject: Subject) -> int:
    """Return the first token of a word."""
    tokens = await _tokens(subject, {"prompt": "a", "add_special_tokens": False})
    return int(tokens["tokens"][0])


async def _continued(subject: Subject, count: int, **fields: Any) -> str:
    answer = await subject.answer(TEXT, {**_writing(count), **fields})
    return str(only_choice(answer)["text"])


def _writing(count: int) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": count, "temperature": 0}


CONTROL_CHECKS = (
    Check("controls", "n", choices),
    Check("controls", "n, streamed", choices_streamed),
    Check("controls", "seed, fingerprint", seeds),
    Check("controls", "logit_bias", bias),
    Check("controls", "penalties", penalties),
    Check("controls", "ignore_eos", ignoring_the_end),
    Check("tokens", "there and back", tokens_there_and_back),
    Check("tokens", "of a chat", tokens_of_a_chat),
)
