"""From chat events to OpenAI's chunks and objects.

A stream's frames are cut once per request; per event only its text is encoded.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from mlx_manager.chat.events import (
    Answer,
    CalledTool,
    ChatEvent,
    ChoiceFinished,
    Delta,
    Finished,
    FinishReason,
    OfChoice,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprobs,
    ToolCallStarted,
    Usage,
)
from mlx_manager.chat.request import ChatRequest
from mlx_manager.wire import sse
from mlx_manager.wire.openai.logprobs import to_chat_logprobs, to_text_logprobs

_encode = msgspec.json.encode
_PLACE = "\0text\0"
_PLACE_JSON = _encode(_PLACE)


class ChunkWriter:
    """Writes the chunks of one choice, for chat (`chat.completion.chunk`) or text (`text_completion`)."""

    def __init__(
        self,
        request: ChatRequest,
        created_s: int,
        model: str,
        includes_usage: bool,
        fingerprint: str | None = None,
        index: int = 0,
    ) -> None:
        self._index = index
        self._is_chat = request.operation == "chat"
        self._includes_usage = includes_usage
        self._frame: dict[str, Any] = {
            "id": request.response_id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": created_s,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head, self._tail = self._event(self._choice(_PLACE, None)).split(_PLACE_JSON)

    def first(self) -> bytes:
        """Return the chunk that opens an answer: chat names the role before any text, text has none."""
        if not self._is_chat:
            return b""
        return self._chat_event({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> bytes:
        """Return the chunk that carries more text."""
        return self._head + _encode(text) + self._tail

    def text_and_logprobs(self, delta: TextDelta) -> bytes:
        """Return the chunk that carries more text and the log-probabilities of its tokens."""
        logprobs = _logprobs(delta.logprobs, self._is_chat)
        return self._event({**self._choice(delta.text, None), "logprobs": logprobs})

    def delta(self, delta: Delta) -> bytes:
        """Return the chunk that carries more of the answer. Only a chat's has anything but text."""
        match delta:
            case TextDelta(text, logprobs):
                return self.text_and_logprobs(delta) if logprobs else self.text(text)
            case ReasoningDelta(text):
                return self._chat_event({"reasoning_content": text, "reasoning": text})
            case ToolCallStarted(index, call_id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                return self._chat_event({"tool_calls": [call]})
            case _:
                call = {"index": delta.index, "function": {"arguments": delta.arguments}}
                return self._chat_event({"tool_calls": [call]})

    def end(self, reason: FinishReason) -> bytes:
        """Return the chunk that says how the choice ended."""
        end = self._choice("", reason)
        if self._is_chat:
            end["delta"] = {}
        return self._event(end)

    def usage(self, finished: Finished) -> bytes:
        """Return what closes the answer: usage when asked for, and the end mark."""
        if not self._includes_usage:
            return sse.DONE
        counts = {**self._frame, "choices": [], "usage": usage(finished.usage)}
        return self._encoded(counts) + sse.DONE

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return {"index": self._index, **content, "logprobs": None, "finish_reason": reason}

    def _chat_event(self, delta: dict[str, Any]) -> bytes:
        return self._event({**self._choice("", None), "delta": delta})

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
    writers = list[ChunkWriter]()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started):
                writers = [
                    ChunkWriter(
                        request, created_s, event.model, includes_usage, event.fingerprint, index
                    )
                    for index in range(request.answers)
                ]
                yield b"".join(writer.first() for writer in writers)
            elif isinstance(event, TextDelta) and not event.logprobs:
                yield writers[0].text(event.text)
            elif isinstance(event, Finished):
                # Of several choices each has had its own end.
                end = writers[0].end(event.reason) if len(writers) == 1 else b""
                yield end + writers[0].usage(event)
            elif isinstance(event, OfChoice):
                yield _of_choice(writers[event.index], event.event)
            else:
                yield writers[0].delta(event)


def _of_choice(writer: ChunkWriter, event: Delta | ChoiceFinished) -> bytes:
    return writer.end(event.reason) if isinstance(event, ChoiceFinished) else writer.delta(event)


def to_response(answer: Answer, request: ChatRequest, created_s: int) -> dict[str, Any]:
    """Return the whole answer as a `chat.completion` or `text_completion` object."""
    is_chat = request.operation == "chat"
    choices = [_whole_choice(*one, request) for one in enumerate(_wanted(answer, request))]
    return {
        "id": request.response_id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created_s,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
        "choices": choices,
        "usage": usage(answer.usage),
    }


def _wanted(answer: Answer, request: ChatRequest) -> list[Answer]:
    """Return the choices that the client gets: all, or the likeliest of each prompt, those first."""
    choices = [answer, *answer.others]
    if request.selection is None:
        return choices
    wanted = list[Answer]()
    for begin in range(0, len(choices), request.choices):
        of_prompt = choices[begin : begin + request.choices]
        ranked = sorted(of_prompt, key=lambda one: _likelihood(one.logprobs), reverse=True)
        wanted += ranked[: request.selection.count]
    return wanted


def _likelihood(tokens: Sequence[TokenLogprobs]) -> float:
    """Return the mean of the log-probabilities of an answer's tokens, by which OpenAI's API calls one the best."""
    written = [one.token for one in tokens if not one.is_echoed]
    logprobs = [token.logprob for token in written if token.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def _whole_choice(index: int, answer: Answer, request: ChatRequest) -> dict[str, Any]:
    is_chat = request.operation == "chat"
    content = {"message": _message(answer)} if is_chat else {"text": answer.text}
    is_asked = request.sampling.top_logprobs is not None
    if request.selection is not None:
        is_asked = request.selection.shows_logprobs
    logprobs = _logprobs(answer.logprobs, is_chat) if is_asked else None
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": answer.reason}


def _logprobs(tokens: tuple[TokenLogprobs, ...], is_chat: bool) -> dict[str, Any]:
    return to_chat_logprobs(tokens) if is_chat else to_text_logprobs(tokens)


def _message(answer: Answer) -> dict[str, Any]:
    """The assistant's message. As in OpenAI's API, beside tool calls there is no content rather than an empty one."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text if answer.text or not answer.tool_calls else None,
        "refusal": None,
        "annotations": [],
    }
    if answer.reasoning:
        message["reasoning_content"] = message["reasoning"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in answer.tool_calls]
    return message


def _tool_call(call: CalledTool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in OpenAI's form: all is text, of prompts and, but for thoughts, of answers."""
    return {
        "prompt_tokens": counts.input_tokens,
        "completion_tokens": counts.output_tokens,
        "total_tokens": counts.input_tokens + counts.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": counts.cached_tokens,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "image_tokens": 0,
            "text_tokens": counts.input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": counts.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "text_tokens": counts.output_tokens - counts.reasoning_tokens,
        },
    }


def model_object(model_id: str, created_s: int, owned_by: str) -> dict[str, Any]:
    """Return a model as the models endpoints describe it."""
    return {"id": model_id, "object": "model", "created": created_s, "owned_by": owned_by}
