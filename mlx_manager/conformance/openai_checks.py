"""What OpenAI's API promises: chats, tools, formats, text completions, embeddings, models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlx_manager.conformance.check import Check
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    CHAT,
    EMBEDDINGS,
    TEXT,
    NotApplicable,
    Subject,
    asking,
    chunks_of,
    deltas_of,
    error_of,
    expect,
    joined,
    only_choice,
    said,
    text_of,
    unless_unsupported,
    whole,
)
from mlx_manager.conformance.words import (
    CALLED,
    CHOICES,
    COUNT_TO_TEN,
    PLACE_SCHEMA,
    QUESTION,
    TIME,
    WEATHER,
    check_arguments,
    check_place,
)

FINISHED = ("stop", "length")
REQUIRED: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200}
FORMAT = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "place", "strict": True, "schema": PLACE_SCHEMA},
    }
}
CODE = r"[0-9]{3}-[a-f]{2}"


async def chat_whole(subject: Subject) -> None:
    """A chat has an id, one choice, an assistant's message and a reason for its end."""
    answer = await subject.chat(COUNT_TO_TEN)
    expect(answer["object"] == "chat.completion", f"object is {answer['object']!r}")
    expect(isinstance(answer["id"], str) and isinstance(answer["created"], int), "id or created")
    choice = only_choice(answer)
    expect(choice["message"]["role"] == "assistant", f"role is {choice['message']['role']!r}")
    expect(choice["finish_reason"] in FINISHED, f"finish_reason is {choice['finish_reason']!r}")


async def chat_streamed(subject: Subject) -> None:
    """A streamed chat says the same as a whole one, in chunks of one id with one end."""
    answer = await subject.chat(COUNT_TO_TEN)
    chunks = await subject.chat_chunks(COUNT_TO_TEN)
    expect(all(chunk["object"] == "chat.completion.chunk" for chunk in chunks), "object of a chunk")
    expect(len({chunk["id"] for chunk in chunks}) == 1, "chunks of several ids")
    expect(deltas_of(chunks)[0].get("role") == "assistant", "the first delta has no role")
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    ends = [reason for reason in reasons if reason]
    expect(ends == [only_choice(answer)["finish_reason"]], f"finish reasons are {ends}")
    expect(joined(chunks) == text_of(answer), "the stream says something else")


async def usage(subject: Subject) -> None:
    """Tokens add up, also in a stream's last chunk, and stay within `max_tokens`."""
    used = (await subject.chat(COUNT_TO_TEN, max_tokens=8))["usage"]
    total = used["prompt_tokens"] + used["completion_tokens"]
    expect(total == used["total_tokens"], f"tokens don't add up: {used}")
    expect(0 < used["completion_tokens"] <= 8, f"of 8 tokens: {used}")
    options = {"include_usage": True}
    chunks = await subject.chat_chunks(COUNT_TO_TEN, max_tokens=8, stream_options=options)
    expect(chunks[-1]["choices"] == [], "the chunk with the usage has choices")
    expect(chunks[-1]["usage"]["total_tokens"] == total, f"in a stream: {chunks[-1]['usage']}")


async def stop(subject: Subject) -> None:
    """A stop string ends the answer before it, whole and streamed."""
    text = text_of(await subject.chat(COUNT_TO_TEN))
    if len(text) < 6:
        raise NotApplicable(f"the model's answer is too short to be stopped: {text!r}")
    word = text[len(text) // 2 : len(text) // 2 + 3]
    wanted = text[: text.index(word)]
    stopped = await subject.chat(COUNT_TO_TEN, stop=[word])
    expect(text_of(stopped) == wanted, f"stopped at {word!r}: {text_of(stopped)!r}")
    expect(only_choice(stopped)["finish_reason"] == "stop", "finish_reason is not stop")
    streamed = joined(await subject.chat_chunks(COUNT_TO_TEN, stop=word))
    expect(streamed == wanted, f"streamed, stopped at {word!r}: {streamed!r}")


async def seed(subject: Subject) -> None:
    """A seed repeats its answer."""
    drawn = {"temperature": 1, "seed": 20261125, "max_tokens": 24}
    first, second = [text_of(await subject.chat(COUNT_TO_TEN, **drawn)) for _ in range(2)]
    expect(first == second, f"{first!r}, then {second!r}")


async def logprobs(subject: Subject) -> None:
    """Each token of the text has its log-probability and as many others as were asked for."""
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 8}
    answer = await subject.chat(COUNT_TO_TEN, **asked)
    entries = only_choice(answer)["logprobs"]["content"]
    if not text_of(answer):
        raise NotApplicable("the model only thinks in its first 8 tokens")
    expect(bool(entries), "no entries")
    expect(all(entry["logprob"] <= 0 for entry in entries), "a probability above 1")
    expect(all(len(entry["top_logprobs"]) == 2 for entry in entries), "not two alternatives")
    said_bytes = b"".join(bytes(entry["bytes"]) for entry in entries)
    expect(text_of(answer).encode() in said_bytes, "the entries say something else")


async def content_parts(subject: Subject) -> None:
    """Content as parts, and a developer's message, are read like text and a system's."""
    parts = [{"type": "text", "text": "Count to "}, {"type": "text", "text": "ten."}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = await subject.answer(CHAT, asking("", messages=messages, max_tokens=8))
    expect(only_choice(answer)["finish_reason"] in FINISHED, "no answer")


async def tools_whole(subject: Subject) -> None:
    """`required` makes a call with an id, a name and an object of arguments."""
    response = unless_unsupported(await subject.post(CHAT, asking(QUESTION, **REQUIRED)))
    choice = only_choice(whole(response.json()))
    expect(choice["finish_reason"] == "tool_calls", f"finish_reason is {choice['finish_reason']!r}")
    call = choice["message"]["tool_calls"][0]
    expect(call["type"] == "function" and bool(call["id"]), f"a call is {call}")
    expect(call["function"]["name"] == "get_weather", f"it calls {call['function']['name']!r}")
    check_arguments(call["function"]["arguments"])


async def tools_streamed(subject: Subject) -> None:
    """A streamed call begins with index, id and name, and its arguments add up to the same object."""
    response = unless_unsupported(await subject.post(CHAT, asking(QUESTION, **REQUIRED)))
    wanted = only_choice(whole(response.json()))["message"]["tool_calls"][0]["function"][
        "arguments"
    ]
    deltas = deltas_of(await subject.chat_chunks(QUESTION, **REQUIRED))
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or ()]
    first = [piece for piece in pieces if piece["index"] == 0]
    expect(bool(first and first[0]["id"] and first[0]["function"]["name"]), "no id or name first")
    written = "".join(piece["function"].get("arguments") or "" for piece in first)
    expect(json.loads(written) == json.loads(wanted), f"arguments are {written!r}")


async def tool_named(subject: Subject) -> None:
    """A named function is the one that is called."""
    choice = {"type": "function", "function": {"name": "get_time"}}
    asked = {"tools": [WEATHER, TIME], "tool_choice": choice, "max_tokens": 200}
    response = unless_unsupported(await subject.post(CHAT, asking(QUESTION, **asked)))
    calls = only_choice(whole(response.json()))["message"]["tool_calls"]
    names = [call["function"]["name"] for call in calls]
    expect(set(names) == {"get_time"}, f"it calls {names}")


async def tool_none(subject: Subject) -> None:
    """With `none` nothing is called."""
    answer = await subject.chat(QUESTION, tools=[WEATHER], tool_choice="none")
    expect(not only_choice(answer)["message"].get("tool_calls"), "it calls a tool")


async def tool_auto(subject: Subject) -> None:
    """With `auto` an answer is text or calls, and its reason says which."""
    choice = only_choice(await subject.chat(QUESTION, tools=[WEATHER], tool_choice="auto"))
    calls = choice["message"].get("tool_calls")
    expect((choice["finish_reason"] == "tool_calls") == bool(calls), "the reason is another")


async def tool_unknown(subject: Subject) -> None:
    """A named function that isn't among the tools is refused."""
    choice = {"type": "function", "function": {"name": "nonsense"}}
    response = await subject.post(CHAT, asking(QUESTION, tools=[WEATHER], tool_choice=choice))
    expect(response.status_code == 400, said(response))


async def one_call(subject: Subject) -> None:
    """Without parallel calls there is one at most."""
    asked: dict[str, Any] = {"tools": [WEATHER], "parallel_tool_calls": False, "max_tokens": 200}
    answer = await subject.chat("What is the weather in Bern and in Oslo?", **asked)
    calls = only_choice(answer)["message"].get("tool_calls") or []
    expect(len(calls) <= 1, f"there are {len(calls)}")


async def tool_round_trip(subject: Subject) -> None:
    """A call and its result can be sent back, and are answered."""
    answer = await subject.answer(CHAT, asking("", messages=CALLED, tools=[WEATHER]))
    expect(only_choice(answer)["finish_reason"] in (*FINISHED, "tool_calls"), "no answer")


async def tool_strict(subject: Subject) -> None:
    """A strict tool's arguments keep to its schema."""
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    asked = asking(QUESTION, **{**REQUIRED, "tools": [strict]})
    response = unless_unsupported(await subject.post(CHAT, asked))
    call = only_choice(whole(response.json()))["message"]["tool_calls"][0]
    check_arguments(call["function"]["arguments"])


async def reasoning(subject: Subject) -> str | None:
    """What a model thinks stands apart from what it answers, and is counted."""
    answer = await subject.chat(QUESTION, reasoning_effort="high", max_tokens=200)
    message = only_choice(answer)["message"]
    expect("<think>" not in (message["content"] or ""), "the answer has marks of thinking")
    if not message.get("reasoning_content"):
        return "the model did not think"
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    within = 0 < counted <= answer["usage"]["completion_tokens"]
    expect(within, f"{counted} reasoning tokens of {answer['usage']}")
    return None


async def json_object(subject: Subject) -> str | None:
    """An answer in JSON can be parsed, unless `max_tokens` cut it."""
    asked = {"response_format": {"type": "json_object"}, "max_tokens": 200}
    answer = await subject.chat("Describe Bern as JSON.", **asked)
    if only_choice(answer)["finish_reason"] == "length":
        return "cut at 200 tokens"
    expect(isinstance(json.loads(text_of(answer)), dict), f"it is {text_of(answer)!r}")
    return None


async def json_schema(subject: Subject) -> None:
    """An answer keeps to a JSON schema."""
    check_place(text_of(await subject.chat("Which place?", **_unthinking(FORMAT))))


async def json_schema_streamed(subject: Subject) -> None:
    """So does a streamed one."""
    check_place(joined(await subject.chat_chunks("Which place?", **_unthinking(FORMAT))))


async def regex(subject: Subject) -> None:
    """An answer keeps to a regular expression."""
    asked = _unthinking({"structured_outputs": {"regex": CODE}})
    text = text_of(await subject.chat("Say a code.", **asked))
    expect(re.fullmatch(CODE, text) is not None, f"it is {text!r}")


async def choice(subject: Subject) -> None:
    """An answer is one of those that may be chosen."""
    asked = _unthinking({"structured_outputs": {"choice": CHOICES}})
    text = text_of(await subject.chat("Which one?", **asked))
    expect(text in CHOICES, f"it is {text!r}")


async def schema_refused(subject: Subject) -> None:
    """A schema that can't be kept to is refused before any token."""
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    response = await subject.post(CHAT, asking("x", response_format=wrong))
    expect(response.status_code == 400, said(response))


async def text_whole(subject: Subject) -> None:
    """A text completion has one choice of text."""
    answer = await subject.answer(TEXT, _continuing())
    expect(answer["object"] == "text_completion", f"object is {answer['object']!r}")
    choice = only_choice(answer)
    expect(isinstance(choice["text"], str), "no text")
    expect(choice["finish_reason"] in FINISHED, f"finish_reason is {choice['finish_reason']!r}")


async def text_streamed(subject: Subject) -> None:
    """A streamed text completion says the same as a whole one."""
    wanted = only_choice(await subject.answer(TEXT, _continuing()))["text"]
    chunks = chunks_of(await subject.events(TEXT, _continuing()))
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    expect(text == wanted, f"{text!r} instead of {wanted!r}")


async def text_echo(subject: Subject) -> None:
    """`echo` puts the prompt before the text."""
    answer = await subject.answer(TEXT, {**_continuing(), "echo": True})
    expect(only_choice(answer)["text"].startswith("Once upon"), "the prompt is missing")


async def text_logprobs(subject: Subject) -> None:
    """Log-probabilities of a text completion are lists of the same length."""
    answer = await subject.answer(TEXT, {**_continuing(), "logprobs": 2})
    lists = only_choice(answer)["logprobs"]
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    expect(len({len(lists[name]) for name in names}) == 1, f"{lists}")


async def vectors(subject: Subject) -> str | None:
    """A model of chats is refused as such; one of embeddings gives a vector for each input, in order."""
    response = await subject.post(EMBEDDINGS, {"input": ["one", "two"]})
    if response.status_code == 404 and error_of(response).get("code") == "not_found":
        raise NotApplicable("the server has no embeddings")
    if response.status_code == 400:
        code = error_of(response).get("code")
        expect(code == "wrong_model_kind", f"a model of chats is refused with {code!r}")
        return "refused: the model makes text"
    expect(response.status_code == 200, said(response))
    entries = response.json()["data"]
    expect([entry["index"] for entry in entries] == [0, 1], "not one vector for each, in order")
    expect(len({len(entry["embedding"]) for entry in entries}) == 1, "vectors of several lengths")
    return None


async def models_openai(subject: Subject) -> None:
    """The model is in the list and can be asked for, in OpenAI's shape."""
    listed = (await subject.client.get("/v1/models")).json()
    expect(listed["object"] == "list", f"object is {listed['object']!r}")
    expect(subject.model in [one["id"] for one in listed["data"]], "the model is not in the list")
    one = (await subject.client.get(f"/v1/models/{subject.model}")).json()
    expect(one["object"] == "model" and one["id"] == subject.model, f"it is {one}")


async def models_anthropic(subject: Subject) -> None:
    """The same in Anthropic's shape, for its clients."""
    listed = await subject.client.get(
        "/v1/models", params={"limit": 1000}, headers=ANTHROPIC_HEADERS
    )
    ids = [one["id"] for one in listed.json()["data"] if one["type"] == "model"]
    expect(subject.model in ids, "the model is not in the list")
    path = f"/v1/models/{subject.model}"
    one = (await subject.client.get(path, headers=ANTHROPIC_HEADERS)).json()
    expect(one["type"] == "model" and one["id"] == subject.model, f"it is {one}")


def _unthinking(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Thoughts are free in length; without them the answer has room."""
    return {**fields, "reasoning_effort": "none", "max_tokens": 200}


def _continuing() -> dict[str, Any]:
    return {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


TEXT_CHECKS = (
    Check("chat", "whole", chat_whole),
    Check("chat", "streamed", chat_streamed),
    Check("chat", "usage", usage),
    Check("chat", "stop", stop),
    Check("chat", "seed", seed),
    Check("chat", "logprobs", logprobs),
    Check("chat", "content parts", content_parts),
    Check("chat", "reasoning apart", reasoning),
    Check("tools", "whole", tools_whole),
    Check("tools", "streamed", tools_streamed),
    Check("tools", "choice: named", tool_named),
    Check("tools", "choice: none", tool_none),
    Check("tools", "choice: auto", tool_auto),
    Check("tools", "choice: unknown", tool_unknown),
    Check("tools", "parallel off", one_call),
    Check("tools", "round trip", tool_round_trip),
    Check("tools", "strict", tool_strict),
    Check("formats", "json_object", json_object),
    Check("formats", "json_schema", json_schema),
    Check("formats", "json_schema streamed", json_schema_streamed),
    Check("formats", "regex", regex),
    Check("formats", "choice", choice),
    Check("formats", "impossible schema", schema_refused),
    Check("text", "whole", text_whole),
    Check("text", "streamed", text_streamed),
    Check("text", "echo", text_echo),
    Check("text", "logprobs", text_logprobs),
)
COMMON_CHECKS = (
    Check("embeddings", "vectors", vectors),
    Check("models", "OpenAI's shape", models_openai),
    Check("models", "Anthropic's shape", models_anthropic),
)
