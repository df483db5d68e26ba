"""From chat events to OpenAI's chunks and objects.

A stream's frames are cut once per request; per event only its text is encoded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from mlx_manager.chat.events import Answer, ChatEvent, Finished, Started, TextDelta, Usage
from mlx_manager.chat.request import ChatRequest
from mlx_manager.wire import sse

_encode = msgspec.json.encode
_PLACE = "\0text\0"
_PLACE_JSON = _encode(_PLACE)


class ChunkWriter:
    """Writes the chunks of one answer, for chat (`chat.completion.chunk`) or text (`text_completion`)."""

    def __init__(
        self, request: ChatRequest, created_s: int, model: str, includes_usage: bool
    ) -> None:
        self._is_chat = request.operation == "chat"
        self._includes_usage = includes_usage
        self._frame: dict[str, Any] = {
            "id": request.response_id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": created_s,
            "model": model,
        }
        self._head, self._tail = self._event(self._choice(_PLACE, None)).split(_PLACE_JSON)

    def first(self) -> bytes:
        """Return the chunk that opens an answer: chat names the role before any text, text has none."""
        if not self._is_chat:
            return b""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._event({**self._choice("", None), "delta": delta})

    def text(self, text: str) -> bytes:
        """Return the chunk that carries more text."""
        return self._head + _encode(text) + self._tail

    def last(self, finished: Finished) -> bytes:
        """Return what closes an answer: finish reason, usage when asked for, and the end mark."""
        end = self._choice("", finished.reason)
        if self._is_chat:
            end["delta"] = {}
        parts = [self._event(end)]
        if self._includes_usage:
            parts.append(
                self._encoded({**self._frame, "choices": [], "usage": usage(finished.usage)})
            )
        return b"".join([*parts, sse.DONE])

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _event(self, choice: dict[str, Any]) -> bytes:
        nothing_yet = {"usage": None} if self._includes_usage else {}
        return self._encoded({**self._frame, "choices": [choice], **nothing_yet})

    @staticmethod
    def _encoded(chunk: dict[str, Any]) -> bytes:
        return sse.data(_encode(chunk))


async def to_chunks(
    events: AsyncGenerator[ChatEvent, None],
    request: ChatRequest,
    created_s: int,
    includes_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """Yield an answer as server-sent events, the first as soon as the engine has taken the request."""
    writer: ChunkWriter | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                assert writer is not None, "a stream begins with Started"
                yield writer.text(event.text)
            elif isinstance(event, Started):
                writer = ChunkWriter(request, created_s, event.model, includes_usage)
                yield writer.first()
            else:
                assert writer is not None, "a stream begins with Started"
                yield writer.last(event)


def to_response(answer: Answer, request: ChatRequest, created_s: int) -> dict[str, Any]:
    """Return the whole answer as a `chat.completion` or `text_completion` object."""
    is_chat = request.operation == "chat"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text,
        "refusal": None,
        "annotations": [],
    }
    content = {"message": message} if is_chat else {"text": answer.text}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.reason}
    return {
        "id": request.response_id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created_s,
        "model": answer.model,
        "choices": [choice],
        "usage": usage(answer.usage),
    }


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in OpenAI's form."""
    return {
        "prompt_tokens": counts.input_tokens,
        "completion_tokens": counts.output_tokens,
        "total_tokens": counts.input_tokens + counts.output_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }


def model_object(model_id: str, created_s: int, owned_by: str) -> dict[str, Any]:
    """Return a model as the models endpoints describe it."""
    return {"id": model_id, "object": "model", "created": created_s, "owned_by": owned_by}
