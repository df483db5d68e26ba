"""What was said, on the chat's span: only when the administrator has switched it on, as text or as hashes of it."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from mlx_manager.chat.backend import ChatBackend
from mlx_manager.chat.events import ChatEvent, Finished, TextDelta
from mlx_manager.chat.request import ChatRequest, Conversation, Message
from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.redaction import CUT, Redactor

Capture = Literal["off", "hashed", "on"]
Part = dict[str, Any]

# Characters of content in one attribute, and messages; the newest have precedence.
CONTENT_LENGTH = 32_000
MOST_MESSAGES = 200


def recording_content(backend: ChatBackend, capture: Capture) -> ChatBackend:
    """`backend` itself when nothing is to be recorded, else one that records; the key of hashes is new each time."""
    if capture == "off":
        return backend
    return ContentRecorder(backend, secrets.token_bytes(32) if capture == "hashed" else None)


class ContentRedactor(Redactor):
    """Lets through what `ContentRecorder` has written, and nothing that an SDK has under the same names."""

    def on_end(self, span: ReadableSpan) -> None:
        """Redact the rest."""
        content = {
            name: value
            for name, value in (span.attributes or {}).items()
            if name in names.CONTENT and _is_ours(span)
        }
        super().on_end(span)
        if content:
            span._attributes = {**(span.attributes or {}), **content}


class ContentRecorder:
    """A backend that writes what goes in and comes out on the span that is current when its stream begins.

    Belongs directly inside the `InstrumentedBackend`. `hash_key` makes hashes that only this key can repeat; without
    one the texts themselves are written.
    """

    def __init__(self, backend: ChatBackend, hash_key: bytes | None) -> None:
        self._backend = backend
        self._hash_key = hash_key

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`, recorded."""
        span, pieces = trace.get_current_span(), list[str]()
        span.set_attributes(self._asked(request))
        is_written = False
        try:
            async with aclosing(self._backend.stream(request)) as events:
                async for event in events:
                    if type(event) is TextDelta:
                        pieces.append(event.text)
                    elif isinstance(event, Finished):
                        # Before it is handed on: whoever has it ends the span.
                        is_written = True
                        span.set_attributes(self._answered(pieces, event.reason))
                    yield event
        finally:
            if not is_written:
                span.set_attributes(self._answered(pieces, "error"))

    def _asked(self, request: ChatRequest) -> dict[str, AttributeValue]:
        words = _Words(self._hash_key)
        if not isinstance(request.input, Conversation):
            prompt = request.input.prompt
            text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
            return {names.INPUT_MESSAGES: _json([_message("user", [words.text(text)])])}
        instructions, turns = _split(request.input.messages)
        # From the newest back, so that it's the oldest that lose their text.
        turned = [_message(turn.role, list(words.parts(turn))) for turn in reversed(turns)][::-1]
        asked: dict[str, AttributeValue] = {names.INPUT_MESSAGES: _json(turned)}
        if instructions:
            words = _Words(self._hash_key)
            parts = [words.text(message.content) for message in instructions]
            asked[names.SYSTEM_INSTRUCTIONS] = _json(parts)
        return asked

    def _answered(self, pieces: Sequence[str], reason: str) -> dict[str, AttributeValue]:
        part = _Words(self._hash_key).text("".join(pieces))
        answer = _message("assistant", [part]) | {"finish_reason": reason}
        return {names.OUTPUT_MESSAGES: _json([answer])}


class _Words:
    """Makes parts of a message, as long as there is room for text."""

    def __init__(self, hash_key: bytes | None) -> None:
        self._hash_key = hash_key
        self._left = CONTENT_LENGTH

    def parts(self, message: Message) -> Iterator[Part]:
        if message.tool_call_id is not None:
            response = self._shown(message.content)
            yield {"type": "tool_call_response", "id": message.tool_call_id, "response": response}
        elif message.content:
            yield self.text(message.content)
        for call in message.tool_calls:
            arguments = self._shown(_json(call.arguments))
            yield {"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments}

    def text(self, text: str) -> Part:
        part: Part = {"type": "text", "content": self._shown(text)}
        return part if self._hash_key is None else part | {"length": len(text)}

    def _shown(self, text: str) -> str:
        if self._hash_key is not None:
            # Half a surrogate pair can be in JSON, and so in a prompt.
            encoded = text.encode("utf-8", "surrogatepass")
            return f"hmac-sha256:{hmac.new(self._hash_key, encoded, hashlib.sha256).hexdigest()}"
        shown = text if len(text) <= self._left else text[: self._left] + CUT
        self._left -= min(len(text), self._left)
        return shown


def _split(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """The instructions that a conversation begins with, and its latest turns."""
    count = next(
        (number for number, message in enumerate(messages) if message.role != "system"),
        len(messages),
    )
    return messages[:count][:MOST_MESSAGES], messages[count:][-MOST_MESSAGES:]


def _message(role: str, parts: list[Part]) -> dict[str, Any]:
    return {"role": role, "parts": parts}


def _json(value: Any) -> str:
    # In ASCII: what has no encoding in UTF-8 must not reach an exporter.
    return json.dumps(value, separators=(",", ":"))


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE
