"""From chat events to Anthropic's events and objects.

The frame of a block's deltas is cut when the block begins; per delta only its text is encoded.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from pydantic_core import from_json

from mlx_manager.chat.events import (
    Answer,
    CalledTool,
    ChatEvent,
    Finished,
    FinishReason,
    OfChoice,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlx_manager.chat.request import ChatRequest
from mlx_manager.wire import sse
from mlx_manager.wire.signature import Signer

PING = sse.event(b"ping", b'{"type":"ping"}')
MESSAGE_STOP = sse.event(b"message_stop", b'{"type":"message_stop"}')
# The key that Anthropic proposes for arguments that are no JSON.
INVALID = "INVALID_JSON"
# What the ids of calls begin with, as they are made here and as this API has them.
CALL_PREFIX, USE_PREFIX = "call_", "toolu_"
_TAIL = b"}}\n\n"
# What a message's usage has besides, and the one at a stream's end hasn't: nothing here is written to be paid for.
OF_A_MESSAGE: dict[str, Any] = {
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "server_tool_use": None,
    "service_tier": "standard",
}

BlockKind = Literal["text", "thinking", "tool_use"]
# Type and field of the deltas of each kind of block.
_DELTAS: dict[BlockKind, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_encode = msgspec.json.encode


class EventWriter:
    """Writes the events of one answer: blocks one after the other, each closed when the next one begins."""

    def __init__(self, request: ChatRequest, signer: Signer, shows_thinking: bool) -> None:
        self._request = request
        self._signer = signer
        self._shows_thinking = shows_thinking
        self._index = -1
        self._kind: BlockKind | None = None
        self._head = b""
        self._thoughts: list[str] = []

    def start(self, started: Started) -> bytes:
        """Return the event that opens an answer, with what is known of its prompt."""
        timeline = started.timeline
        counts = Usage(timeline.prompt_tokens, 0, timeline.cached_tokens)
        message = _message(self._request.response_id, started.model, [], counts)
        return _event("message_start", message=message)

    def text(self, text: str) -> bytes:
        """Return the event that carries more text; the first one opens its block."""
        if self._kind == "text":
            return self._head + _encode(text) + _TAIL
        return self._open("text", {"text": ""}) + self._delta(text)

    def thinking(self, text: str) -> bytes:
        """Return the event that carries more thinking, empty when the client doesn't want to see it."""
        opened = (
            b"" if self._kind == "thinking" else self._open("thinking", _thinking_block("", ""))
        )
        self._thoughts.append(text)
        return opened + self._delta(text) if self._shows_thinking else opened

    def call(self, call: ToolCallStarted) -> bytes:
        """Return the events that open the block of a call; it has arguments when they come."""
        return self._open("tool_use", {"id": _use_id(call.id), "name": call.name, "input": {}})

    def arguments(self, more: ToolCallDelta) -> bytes:
        """Return the event that carries more of the arguments of the call that is open."""
        assert self._kind == "tool_use", "calls follow each other"
        return self._delta(more.arguments)

    def end(self, finished: Finished) -> bytes:
        """Return what closes an answer: its last block, why it stopped, its token counts, and the end mark."""
        delta = _stop(finished.reason, finished.stop_string, finished.usage, self._request)
        counts = usage(finished.usage)
        return self._close() + _event("message_delta", delta=delta, usage=counts) + MESSAGE_STOP

    def _delta(self, text: str) -> bytes:
        return self._head + _encode(text) + _TAIL

    def _open(self, kind: BlockKind, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._index += 1
        self._kind = kind
        type_, field = _DELTAS[kind]
        whole = _event("content_block_delta", index=self._index, delta={"type": type_, field: ""})
        self._head = whole.removesuffix(b'""' + _TAIL)
        start = {"type": kind, **block}
        return closed + _event("content_block_start", index=self._index, content_block=start)

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        signed = self._sign() if self._kind == "thinking" else b""
        self._kind = None
        return signed + _event("content_block_stop", index=self._index)

    def _sign(self) -> bytes:
        thinking, self._thoughts = "".join(self._thoughts), []
        signature = self._signer.sign(thinking, is_shown=self._shows_thinking)
        delta = {"type": "signature_delta", "signature": signature}
        return _event("content_block_delta", index=self._index, delta=delta)


async def to_events(
    events: AsyncGenerator[ChatEvent, None],
    request: ChatRequest,
    signer: Signer,
    shows_thinking: bool,
) -> AsyncGenerator[bytes, None]:
    """Yield an answer as server-sent events, the first as soon as the engine has taken the request."""
    writer = EventWriter(request, signer, shows_thinking)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                yield writer.text(event.text)
            elif frames := _frames(writer, event):
                yield frames


def _frames(
    writer: EventWriter,
    event: Started | ReasoningDelta | ToolCallStarted | ToolCallDelta | OfChoice | Finished,
) -> bytes:
    match event:
        case Started():
            return writer.start(event)
        case ReasoningDelta(text):
            return writer.thinking(text)
        case ToolCallStarted():
            return writer.call(event)
        case ToolCallDelta():
            return writer.arguments(event)
        case Finished():
            return writer.end(event)
        case OfChoice():
            raise AssertionError("this API asks for one choice")


def to_message(
    answer: Answer, request: ChatRequest, signer: Signer, shows_thinking: bool
) -> dict[str, Any]:
    """Return the whole answer as a `message` object."""
    blocks = list[dict[str, Any]]()
    if answer.reasoning:
        signature = signer.sign(answer.reasoning, is_shown=shows_thinking)
        shown = answer.reasoning if shows_thinking else ""
        blocks.append({"type": "thinking", **_thinking_block(shown, signature)})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    blocks.extend(map(_tool_use, answer.tool_calls))
    message = _message(request.response_id, answer.model, blocks, answer.usage)
    return message | _stop(answer.reason, answer.stop_string, answer.usage, request)


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in Anthropic's form, in which cached tokens are no part of `input_tokens`."""
    return {
        "input_tokens": counts.input_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.output_tokens,
        "output_tokens_details": {"thinking_tokens": counts.reasoning_tokens},
    }


def _message(
    response_id: str, model: str, content: list[dict[str, Any]], counts: Usage
) -> dict[str, Any]:
    return {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage(counts), **OF_A_MESSAGE},
    }


def _stop(
    reason: FinishReason, stop_string: str | None, counts: Usage, request: ChatRequest
) -> dict[str, Any]:
    return {
        "stop_reason": _stop_reason(reason, stop_string, counts, request),
        "stop_sequence": stop_string,
    }


def _stop_reason(
    reason: FinishReason, stop_string: str | None, counts: Usage, request: ChatRequest
) -> str:
    if reason == "tool_calls":
        return "tool_use"
    if reason == "stop":
        return "end_turn" if stop_string is None else "stop_sequence"
    asked = request.max_tokens
    # Cut before its limit: the context was full.
    is_full = asked is not None and counts.output_tokens < asked
    return "model_context_window_exceeded" if is_full else "max_tokens"


def _thinking_block(thinking: str, signature: str) -> dict[str, Any]:
    return {"thinking": thinking, "signature": signature}


def _tool_use(call: CalledTool) -> dict[str, Any]:
    arguments = _arguments(call.arguments) if call.arguments else {}
    return {"type": "tool_use", "id": _use_id(call.id), "name": call.name, "input": arguments}


def _use_id(call_id: str) -> str:
    """Return the id of a call as this API's ids begin; those of a family's own length are that long and stay."""
    made_here = call_id.removeprefix(CALL_PREFIX)
    return call_id if made_here == call_id else f"{USE_PREFIX}{made_here}"


def _arguments(written: str) -> dict[str, Any]:
    """Return arguments as an object; what can't be read as one stands in it as it was written."""
    try:
        # An answer that was cut short has complete arguments up to there, as the SDK reads them from a stream.
        found = from_json(written, allow_partial=True)
        # 1e999 can be read, and not be written.
        json.dumps(found, allow_nan=False)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {INVALID: written}


def _event(kind: str, **fields: Any) -> bytes:
    return sse.event(kind.encode(), _encode({"type": kind, **fields}))
