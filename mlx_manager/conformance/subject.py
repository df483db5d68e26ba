"""The server and the model that are checked, and how they are asked: plain HTTP, as the protocols are documented."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ANTHROPIC_HEADERS = {"anthropic-version": "2023-06-01"}
UNSUPPORTED = "unsupported_parameter"
MAX_TOKENS = 64


class Broken(Exception):
    """The server did not do what the protocol says; the message says what it did instead."""


class NotApplicable(Exception):
    """The check says nothing about this model or server; the message says why."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `name` is empty in OpenAI's streams, `data` as it was sent."""

    name: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.data)
        expect(isinstance(found, dict), f"an event that is no object: {self.data[:80]}")
        return dict(found)


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server behind `client`, and the id of the model to ask."""

    client: httpx.AsyncClient
    model: str

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self.client.base_url).rstrip("/")

    @property
    def key(self) -> str:
        """The key that the server wants; clients insist on one where it wants none."""
        return self.client.headers.get("authorization", "").removeprefix("Bearer ") or "none"

    @property
    def timeout_s(self) -> float | None:
        """How long an answer may take."""
        return self.client.timeout.read

    async def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a body, with the model's id unless it has one."""
        return await self.client.post(path, json={"model": self.model, **body}, headers=headers)

    async def answer(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the answer to a body. Raises Broken unless its status is 200."""
        response = await self.post(path, body, headers)
        expect(response.status_code == 200, said(response))
        return dict(response.json())

    async def events(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> list[Event]:
        """Return the events of a streamed answer. Raises Broken unless it is one."""
        sent = {"model": self.model, **body, "stream": True}
        async with self.client.stream("POST", path, json=sent, headers=headers) as response:
            if response.status_code != 200:
                await response.aread()
                raise Broken(said(response))
            kind = response.headers.get("content-type", "")
            expect(kind.startswith("text/event-stream"), f"a stream has the type {kind!r}")
            return [event async for event in events_of(response)]

    async def chat(self, content: str, **fields: Any) -> dict[str, Any]:
        """Return the answer to one question, greedy and short unless `fields` say otherwise."""
        return await self.answer(CHAT, asking(content, **fields))

    async def chat_chunks(self, content: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the chunks of the same, streamed. Raises Broken unless it ends with `[DONE]`."""
        return chunks_of(await self.events(CHAT, asking(content, **fields)))

    async def message(self, content: str, **fields: Any) -> dict[str, Any]:
        """Return the answer to one question in Anthropic's words."""
        return await self.answer(MESSAGES, asking(content, **fields), ANTHROPIC_HEADERS)

    async def message_events(self, content: str, **fields: Any) -> list[Event]:
        """Return the events of the same, streamed."""
        return await self.events(MESSAGES, asking(content, **fields), ANTHROPIC_HEADERS)


def asking(content: str, **fields: Any) -> dict[str, Any]:
    """A body with one question, which both APIs write alike."""
    asked = {"messages": [{"role": "user", "content": content}]}
    return {**asked, "temperature": 0, "max_tokens": MAX_TOKENS, **fields}


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield the events of a stream as they come."""
    name, data = "", list[str]()
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield Event(name, "\n".join(data))
            name, data = "", []


def chunks_of(events: list[Event]) -> list[dict[str, Any]]:
    """Return the chunks of OpenAI's stream. Raises Broken where it has an error or no end."""
    expect(bool(events) and events[-1].data == "[DONE]", "the stream does not end with [DONE]")
    chunks = [event.json for event in events[:-1]]
    for chunk in chunks:
        expect("error" not in chunk, f"an error in the stream: {chunk.get('error')}")
    return chunks


def expect(holds: bool, otherwise: str) -> None:
    """Raise Broken, with what is the case, unless the rule holds."""
    if not holds:
        raise Broken(otherwise)


def said(response: httpx.Response) -> str:
    """An answer in a line: its status and what an error in it says."""
    return f"{response.status_code}: {error_of(response).get('message', response.text[:200])}"


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of either API; empty where there is none."""
    try:
        error = response.json().get("error")
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {}


def unless_unsupported(response: httpx.Response) -> httpx.Response:
    """Return the answer. Raises NotApplicable where this kind of model can't do it, Broken at other errors."""
    error = error_of(response)
    # Anthropic's errors have no code; what isn't supported says so.
    says_so = error.get("code") == UNSUPPORTED or "not support" in str(error.get("message"))
    if response.status_code == 400 and says_so:
        raise NotApplicable(str(error["message"]))
    expect(response.status_code == 200, said(response))
    return response


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of either API. Raises NotApplicable where `max_tokens` cut it, as may be."""
    reasons = [one.get("finish_reason") for one in answer.get("choices", ())]
    if "length" in reasons or answer.get("stop_reason") == "max_tokens":
        raise NotApplicable("the model did not come to an end within max_tokens")
    return answer


def only_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The one choice of a chat or text completion."""
    choices = answer.get("choices")
    expect(isinstance(choices, list) and len(choices) == 1, f"choices are {choices!r}")
    return dict(answer["choices"][0])


def text_of(answer: Mapping[str, Any]) -> str:
    """What a chat's answer says; empty where it only thinks or calls."""
    return str(only_choice(answer)["message"]["content"] or "")


def deltas_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deltas of a streamed chat; the chunk of token counts has none."""
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def joined(chunks: list[dict[str, Any]], name: str = "content") -> str:
    """A field of all deltas, put together."""
    return "".join(delta.get(name) or "" for delta in deltas_of(chunks))


def block_text(message: Mapping[str, Any]) -> str:
    """What a message of Anthropic's says in its text blocks."""
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")
