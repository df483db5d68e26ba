"""Short requests of all kinds, good and bad, and what must come of each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.chaos.connection import Reply
from tools.chaos.server import MODEL

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
# What a stream ends with that has come to its end.
STREAM_ENDS = {
    CHAT: b"data: [DONE]\n\n",
    COMPLETIONS: b"data: [DONE]\n\n",
    MESSAGES: b'data: {"type":"message_stop"}\n\n',
}
BAD_SHARE = 0.1
# More than the model of a soak takes (`CONTEXT_TOKENS`).
LONG_WORDS = 2000


@dataclass(frozen=True, slots=True)
class Short:
    """A request and the status that it must be answered with."""

    path: str
    body: bytes
    status: int = 200
    is_streamed: bool = False

    def is_answered_by(self, reply: Reply) -> bool:
        """Whether the reply is what must come of it, and whole."""
        if reply.status != self.status:
            return False
        if self.is_streamed:
            return reply.body.endswith(STREAM_ENDS[self.path]) and b'"error"' not in reply.body
        return ("error" in json.loads(reply.body)) == (self.status >= 400)


def some(chance: random.Random) -> Short:
    """Return a short request; one in ten is wrong in one way or another."""
    path, body = _good(chance)
    if chance.random() > BAD_SHARE:
        return Short(path, json.dumps(body).encode(), is_streamed=body["stream"])
    return chance.choice(WAYS_TO_FAIL)(path, body)


def _good(chance: random.Random) -> tuple[str, dict[str, Any]]:
    path = chance.choices([CHAT, COMPLETIONS, MESSAGES], [5, 2, 3])[0]
    text = "word " * chance.randrange(1, 40)
    asked = {"prompt": text} if path == COMPLETIONS else _messages(text)
    common = {"model": MODEL, "stream": chance.random() > 0.5}
    return path, {**common, **asked, "max_tokens": chance.randrange(1, 12)}


def _messages(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _cut(path: str, body: dict[str, Any]) -> Short:
    return Short(path, json.dumps(body).encode()[:-9], 400)


def _empty(path: str, _body: dict[str, Any]) -> Short:
    return Short(path, b"", 400)


def _wrong_number(path: str, body: dict[str, Any]) -> Short:
    return Short(path, json.dumps(body | {"max_tokens": -1}).encode(), 400)


def _unknown_parameter(path: str, body: dict[str, Any]) -> Short:
    return Short(path, json.dumps(body | {"wings": 2}).encode(), 400)


def _unknown_model(path: str, body: dict[str, Any]) -> Short:
    return Short(path, json.dumps(body | {"model": "no/such"}).encode(), 404)


def _unknown_path(_path: str, body: dict[str, Any]) -> Short:
    return Short("/v1/nothing", json.dumps(body).encode(), 404)


def _too_long(path: str, body: dict[str, Any]) -> Short:
    text = "word " * LONG_WORDS
    asked = {"prompt": text} if path == COMPLETIONS else _messages(text)
    return Short(path, json.dumps(body | asked).encode(), 400)


def _wrong_kind(_path: str, body: dict[str, Any]) -> Short:
    return Short("/v1/embeddings", json.dumps({"model": body["model"], "input": "x"}).encode(), 400)


WAYS_TO_FAIL: tuple[Callable[[str, dict[str, Any]], Short], ...] = (
    _cut,
    _empty,
    _wrong_number,
    _unknown_parameter,
    _unknown_model,
    _unknown_path,
    _too_long,
    _wrong_kind,
)
