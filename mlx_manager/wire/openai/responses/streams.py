"""From chat events to the items of a response, and to the events of its stream.

The frame of a text's deltas is cut when the text begins; per delta only its number and its text are written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from mlx_manager.chat.events import (
    BETWEEN_MESSAGES,
    ChatEvent,
    Finished,
    OfChoice,
    Phase,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import ChatRequest
from mlx_manager.errors import MlxManagerError
from mlx_manager.wire import sse
from mlx_manager.wire.openai.logprobs import to_chat_logprobs
from mlx_manager.wire.openai.responses.items import ItemObject
from mlx_manager.wire.openai.responses.namespaces import apart
from mlx_manager.wire.openai.responses.objects import (
    ADJUSTED,
    UNFINISHED,
    ResponseObject,
    Status,
    failure,
    sealed,
    usage,
)
from mlx_manager.wire.signature import Signer

_encode = msgspec.json.encode
_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
# Kind of the content of an item, and what the names of its events begin with.
_TEXTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}
_ARGUMENTS = "response.function_call_arguments"


class ResponseWriter:
    """Writes one response: `response` is what is known of it, and each event adds to it and gives the stream's frames.

    Items come one after the other; each is closed when the next one begins. With a `sealer` reasoning has its
    `encrypted_content`.
    """

    def __init__(
        self, request: ChatRequest, response: ResponseObject, sealer: Signer | None = None
    ) -> None:
        self.response = response
        self._sealer = sealer
        self._request = request
        self._sequence_number = 0
        self._item: ItemObject | None = None
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._head = self._middle = b""

    @property
    def has_begun(self) -> bool:
        """Whether there is anything of the stream yet."""
        return self._sequence_number > 0

    @property
    def is_over(self) -> bool:
        """Whether nothing will be added any more."""
        return self.response["status"] not in UNFINISHED

    def see(self, event: ChatEvent) -> bytes:
        """Add an event of the answer, and return the stream's events for it."""
        match event:
            case TextDelta():
                return self._text(event)
            case ReasoningDelta(text):
                return self._open("reasoning") + self._delta(text)
            case ToolCallStarted():
                return self._call(event)
            case ToolCallDelta():
                return self._delta(event.arguments)
            case Started():
                return self._start(event)
            case Finished():
                return self._finish(event)
            case OfChoice():
                raise AssertionError("this API asks for one choice")

    def queue(self) -> bytes:
        """Return the events of a response that is to be worked on later: they are the first, and tell its id."""
        return self._lifecycle("created") + self._lifecycle("queued")

    def fail(self, error: MlxManagerError) -> bytes:
        """End the response by an error. What was written stays, and is incomplete."""
        begun = b"" if self.has_begun else self._lifecycle("created")
        self.response["error"] = failure(error)
        return begun + self._end("failed", "incomplete")

    def cancel(self) -> bytes:
        """End the response because its client doesn't want it any more.

        The API has no event of that name: the last one is `response.incomplete`, with a response that says `cancelled`.
        """
        closed = self._close("incomplete")
        self.response["status"] = "cancelled"
        return closed + self._lifecycle("incomplete")

    def error(self, error: MlxManagerError) -> bytes:
        """Return the event of an error that comes when the response is over: it could not be kept."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _start(self, started: Started) -> bytes:
        self.response["model"] = started.model
        self.response["status"] = "in_progress"
        chosen = {"temperature": started.temperature, "top_p": started.top_p}
        self.response |= {name: value for name, value in chosen.items() if value is not None}
        if self.response["background"] and started.timeline.adjusted:
            self.response[ADJUSTED] = list(map(str, started.timeline.adjusted))
        created = b"" if self.has_begun else self._lifecycle("created")
        return created + self._lifecycle("in_progress")

    def _finish(self, finished: Finished) -> bytes:
        self.response["usage"] = usage(finished.usage)
        if finished.reason == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
            return self._end("incomplete", "incomplete")
        # An answer always has a message, unless the model called something instead.
        opened = b"" if self._has_answer() else self._open("message")
        self.response["completed_at"] = int(time.time())
        return opened + self._end("completed", "completed")

    def _has_answer(self) -> bool:
        kinds = [item["type"] for item in self.response["output"]]
        return bool({"message", "function_call"} & set(kinds))

    def _end(self, status: Status, of_item: str) -> bytes:
        closed = self._close(of_item)
        self.response["status"] = status
        return closed + self._lifecycle(status)

    def _text(self, delta: TextDelta) -> bytes:
        is_next = self._is_next_message(delta)
        opened = (self._close("completed") if is_next else b"") + self._open("message", delta.phase)
        text = delta.text.removeprefix(BETWEEN_MESSAGES) if is_next else delta.text
        if not delta.logprobs:
            return opened + self._delta(text)
        self._pieces.append(text)
        logprobs = _logprobs(delta.logprobs)
        self._logprobs.extend(logprobs)
        return opened + self._of_text("delta", delta=text, logprobs=logprobs)

    def _is_next_message(self, delta: TextDelta) -> bool:
        """Whether there is a message, and this is known to be of another one: each is an item of its own."""
        if delta.phase is None:
            return False
        if self._item is not None and self._item["type"] == "message":
            return self._item.get("phase") != delta.phase
        return any(item["type"] == "message" for item in self.response["output"])

    def _call(self, call: ToolCallStarted) -> bytes:
        closed = self._close("completed")
        called = {"call_id": call.id, **apart(self._request, call.name), "arguments": ""}
        opened = self._add("function_call", called)
        self._cut(f"{_ARGUMENTS}.delta", {"item_id": self._id, "output_index": self._index})
        return closed + opened

    def _open(self, kind: str, phase: Phase | None = None) -> bytes:
        """Begin an item that has text, unless one of its kind is open already."""
        if self._item is not None and self._item["type"] == kind:
            return b""
        closed = self._close("completed")
        content: dict[str, Any] = {"content": []}
        beside: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        labelled = {} if phase is None else {"phase": phase}
        opened = self._add(kind, content | beside | labelled)
        part = self._part("", [])
        opened += self._event("response.content_part.added", **self._place(), part=part)
        nothing: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        self._cut(f"{_TEXTS[kind][1]}.delta", {**self._place(), **nothing})
        return closed + opened

    def _add(self, kind: str, fields: dict[str, Any]) -> bytes:
        index = len(self.response["output"])
        item_id = f"{_PREFIXES[kind]}{self._request.origin.request_id}_{index}"
        self._item = {"id": item_id, "type": kind, "status": "in_progress", **fields}
        self._pieces, self._logprobs = [], []
        self.response["output"].append(self._item)
        return self._event("response.output_item.added", output_index=self._index, item=self._item)

    def _close(self, status: str) -> bytes:
        """End the open item, and return the events that say so."""
        if self._item is None:
            return b""
        item, text = self._item, "".join(self._pieces)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            done = self._event(
                f"{_ARGUMENTS}.done",
                item_id=self._id,
                output_index=self._index,
                arguments=text,
            )
        else:
            done = self._close_text(item, text)
        done += self._event("response.output_item.done", output_index=self._index, item=item)
        self._item = None
        return done

    def _close_text(self, item: ItemObject, text: str) -> bytes:
        part = self._part(text, self._logprobs)
        item["content"].append(part)
        if self._sealer is not None and item["type"] == "reasoning":
            item["encrypted_content"] = sealed(item, self._sealer)
        said = {"logprobs": self._logprobs} if item["type"] == "message" else {}
        done = self._of_text("done", text=text, **said)
        return done + self._event("response.content_part.done", **self._place(), part=part)

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        kind = _TEXTS[self._open_item["type"]][0]
        if kind == "reasoning_text":
            return {"type": kind, "text": text}
        return {"type": kind, "text": text, "annotations": [], "logprobs": logprobs}

    def _of_text(self, name: str, **fields: Any) -> bytes:
        prefix = _TEXTS[self._open_item["type"]][1]
        return self._event(f"{prefix}.{name}", **self._place(), **fields)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, "content_index": 0}

    @property
    def _open_item(self) -> ItemObject:
        assert self._item is not None, "text belongs to an item"
        return self._item

    @property
    def _id(self) -> str:
        item_id: str = self._open_item["id"]
        return item_id

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _cut(self, kind: str, fields: dict[str, Any]) -> None:
        """Cut the frame of the deltas to come: what stands before their number, and between that and their text."""
        payload = _encode({"type": kind, **fields})
        start = b"event: " + kind.encode() + b"\ndata: "
        self._head = start + payload.removesuffix(b"}") + b',"sequence_number":'
        self._middle = b',"delta":'

    def _delta(self, text: str) -> bytes:
        self._pieces.append(text)
        number = b"%d" % self._sequence_number
        self._sequence_number += 1
        return self._head + number + self._middle + _encode(text) + b"}\n\n"

    def _lifecycle(self, name: str) -> bytes:
        return self._event(f"response.{name}", response=self.response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        payload = {"type": kind, "sequence_number": number, **fields}
        return sse.event(kind.encode(), _encode(payload))


def _logprobs(tokens: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = to_chat_logprobs(tokens)["content"]
    return content
