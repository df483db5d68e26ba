"""What was said, on the chat's span: only when the administrator has switched it on, as text or as hashes of it."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.util.types import AttributeValue

from mlx_manager.chat.backend import ChatBackend
from mlx_manager.chat.events import (
    ChatEvent,
    ChoiceFinished,
    Delta,
    Departure,
    Finished,
    OfChoice,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import ChatRequest, Conversation, Message, RawPrompt, Tool
from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.known_secrets import without_secrets
from mlx_manager.observability.redaction import CUT, Redactor

Capture = Literal["off", "hashed", "on"]
Part = dict[str, Any]

# Characters of content in one attribute, and messages; the newest have precedence.
CONTENT_LENGTH = 32_000
MOST_MESSAGES = 200


def recording_content(
    backend: ChatBackend, capture: Capture, by_key: Mapping[str, Capture] | None = None
) -> ChatBackend:
    """`backend` itself when nothing is to be recorded, else one that records; the key of hashes is new each time.

    `by_key` says by the ids of API keys what holds for their requests instead of `capture`.
    """
    by_key = by_key or {}
    if all(one == "off" for one in (capture, *by_key.values())):
        return backend
    return ContentRecorder(backend, capture, by_key, secrets.token_bytes(32))


class ContentRedactor(Redactor):
    """Lets through what `ContentRecorder` has written, and nothing that an SDK has under the same names."""

    def on_end(self, span: ReadableSpan) -> None:
        """Redact the rest."""
        content = {
            name: without_secrets(value, len(value)) if isinstance(value, str) else value
            for name, value in (span.attributes or {}).items()
            if name in names.CONTENT and _is_ours(span)
        }
        super().on_end(span)
        if content:
            span._attributes = {**(span.attributes or {}), **content}


class ContentRecorder:
    """A backend that writes what goes in and comes out on the span that is current when its stream begins.

    Belongs directly inside the `InstrumentedBackend`. `hash_key` makes hashes that only this key can repeat, where
    `hashed` holds; with `on` the texts themselves are written.
    """

    def __init__(
        self,
        backend: ChatBackend,
        capture: Capture,
        by_key: Mapping[str, Capture],
        hash_key: bytes,
    ) -> None:
        self._backend = backend
        self._capture = capture
        self._by_key = by_key
        self._hash_key = hash_key

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`, recorded as is wanted for its key."""
        capture = self._by_key.get(request.origin.key_id or "", self._capture)
        if capture == "off":
            return self._backend.stream(request)
        return self._record(request, self._hash_key if capture == "hashed" else None)

    async def _record(
        self, request: ChatRequest, hash_key: bytes | None
    ) -> AsyncGenerator[ChatEvent, None]:
        span, choices = trace.get_current_span(), defaultdict[int, list[Delta]](list)
        reasons = dict[int, str]()
        span.set_attributes(_asked(request, hash_key))
        is_written = False
        try:
            async with aclosing(self._backend.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        # Before it is handed on: whoever has it ends the span.
                        is_written = True
                        reasons.setdefault(0, event.reason)
                        span.set_attributes(_answered(choices, reasons, hash_key))
                        span.set_attributes(_departed(request.timeline.departure, hash_key))
                    elif isinstance(event, OfChoice):
                        if isinstance(event.event, ChoiceFinished):
                            reasons[event.index] = event.event.reason
                        else:
                            choices[event.index].append(event.event)
                    elif not isinstance(event, Started):
                        choices[0].append(event)
                    yield event
        finally:
            if not is_written:
                span.set_attributes(_answered(choices, reasons, hash_key))


def _asked(request: ChatRequest, hash_key: bytes | None) -> dict[str, AttributeValue]:
    words = _Words(hash_key)
    if not isinstance(request.input, Conversation):
        prompts = (request.input, *request.more_prompts)
        asked_for = [_message("user", [words.text(_text_of(prompt))]) for prompt in prompts]
        return {names.INPUT_MESSAGES: _json(asked_for)}
    instructions, turns = _split(request.input.messages)
    # From the newest back, so that it's the oldest that lose their text.
    turned = [_message(turn.role, list(words.parts(turn))) for turn in reversed(turns)][::-1]
    asked: dict[str, AttributeValue] = {names.INPUT_MESSAGES: _json(turned)}
    if instructions:
        words = _Words(hash_key)
        parts = [words.text(message.content) for message in instructions]
        asked[names.SYSTEM_INSTRUCTIONS] = _json(parts)
    if request.input.tools:
        words = _Words(hash_key)
        tools = [words.tool(tool) for tool in request.input.tools[:MOST_MESSAGES]]
        asked[names.TOOL_DEFINITIONS] = _json(tools)
    return asked


def _answered(
    choices: Mapping[int, Sequence[Delta]], reasons: Mapping[int, str], hash_key: bytes | None
) -> dict[str, AttributeValue]:
    """A message for each choice; those that share the room for text are all of one answer."""
    words, answers = _Words(hash_key), list[dict[str, Any]]()
    for index in sorted({0, *choices, *reasons}):
        parts = list(words.answer(choices.get(index, ())))
        reason = reasons.get(index, "error")
        answers.append(_message("assistant", parts) | {"finish_reason": reason})
    return {names.OUTPUT_MESSAGES: _json(answers)}


def _departed(departure: Departure | None, hash_key: bytes | None) -> dict[str, AttributeValue]:
    """Where the prompt left what is stored in the prefix cache, in words."""
    if departure is None:
        return {}
    words = _Words(hash_key)
    said = {
        names.CACHE_MISS_TEXT: departure.text,
        names.CACHE_STORED_TEXT: departure.stored_text,
    }
    return {name: words.shown(text) for name, text in said.items() if text}


class _Words:
    """Makes parts of a message, as long as there is room for text."""

    def __init__(self, hash_key: bytes | None) -> None:
        self._hash_key = hash_key
        self._left = CONTENT_LENGTH

    def parts(self, message: Message) -> Iterator[Part]:
        if message.reasoning:
            yield self.reasoning(message.reasoning)
        if message.tool_call_id is not None:
            response = self.shown(message.content)
            yield {"type": "tool_call_response", "id": message.tool_call_id, "response": response}
        elif message.content:
            yield self.text(message.content)
        for call in message.tool_calls:
            yield self._call(call.id, call.name, _json(call.arguments))

    def answer(self, deltas: Sequence[Delta]) -> Iterator[Part]:
        if thought := "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)):
            yield self.reasoning(thought)
        calls = [delta for delta in deltas if isinstance(delta, ToolCallStarted)]
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        if text or not calls:
            yield self.text(text)
        arguments = defaultdict[int, list[str]](list)
        for delta in deltas:
            if isinstance(delta, ToolCallDelta):
                arguments[delta.index].append(delta.arguments)
        for call in calls:
            yield self._call(call.id, call.name, "".join(arguments[call.index]))

    def tool(self, tool: Tool) -> Part:
        """A definition; parameters that there is no room for are their beginning, as text."""
        told: Part = {"type": "function", "name": tool.name}
        if tool.description is not None:
            told["description"] = self.shown(tool.description)
        parameters = _json(tool.parameters)
        fits = self._hash_key is None and len(parameters) <= self._left
        shown = self.shown(parameters)
        return told | {"parameters": tool.parameters if fits else shown}

    def text(self, text: str) -> Part:
        return self._words("text", text)

    def reasoning(self, text: str) -> Part:
        return self._words("reasoning", text)

    def _words(self, kind: str, text: str) -> Part:
        part: Part = {"type": kind, "content": self.shown(text)}
        return part if self._hash_key is None else part | {"length": len(text)}

    def _call(self, call_id: str, name: str, arguments: str) -> Part:
        shown = self.shown(arguments)
        return {"type": "tool_call", "id": call_id, "name": name, "arguments": shown}

    def shown(self, text: str) -> str:
        if self._hash_key is not None:
            # Half a surrogate pair can be in JSON, and so in a prompt.
            encoded = text.encode("utf-8", "surrogatepass")
            return f"hmac-sha256:{hmac.new(self._hash_key, encoded, hashlib.sha256).hexdigest()}"
        shown = without_secrets(text, self._left) + (CUT if len(text) > self._left else "")
        self._left -= min(len(text), self._left)
        return shown


def _split(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """The instructions that a conversation begins with, and its latest turns."""
    count = next(
        (number for number, message in enumerate(messages) if message.role != "system"),
        len(messages),
    )
    return messages[:count][:MOST_MESSAGES], messages[count:][-MOST_MESSAGES:]


def _text_of(prompt: RawPrompt) -> str:
    whole = prompt.prompt
    return whole if isinstance(whole, str) else " ".join(map(str, whole))


def _message(role: str, parts: list[Part]) -> dict[str, Any]:
    return {"role": role, "parts": parts}


def _json(value: Any) -> str:
    # In ASCII: what has no encoding in UTF-8 must not reach an exporter.
    return json.dumps(value, separators=(",", ":"))


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE
