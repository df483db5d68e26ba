"""What is known of one request to the model API while it is answered."""

from __future__ import annotations

from datetime import UTC, datetime

from mlx_manager.chat.events import Finished, FinishReason, Started, Timeline, Usage
from mlx_manager.chat.request import Operation, Origin
from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.audit.tables import Outcome
from mlx_manager.observability.known_secrets import without_secrets
from mlx_manager.observability.redaction import clean_text
from mlx_manager.wire.anthropic.errors import error_type as anthropic_error_type
from mlx_manager.wire.dialects import dialect_of
from mlx_manager.wire.openai.errors import error_type

OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Entry:
    """Gathers what a row of the audit log will say; `values` makes it, off the request's path.

    Times are nanoseconds since the Unix epoch. `row_id` is that of the row which is there already.
    The first failure is kept; after the answer was complete nobody can cancel it any more.
    """

    __slots__ = (
        "_ended_ns",
        "_error",
        "_is_cancelled",
        "_is_interrupted",
        "_reason",
        "_started",
        "_usage",
        "backend",
        "is_held",
        "model",
        "origin",
        "row_id",
        "started_ns",
        "status",
        "stream",
        "timeline",
        "trace_id",
    )

    def __init__(self, origin: Origin, trace_id: str | None, started_ns: int) -> None:
        self.origin = origin
        self.trace_id = trace_id
        self.started_ns = started_ns
        self.row_id: int | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.backend: str | None = None
        # How far the backend came, also where nobody was told of it any more.
        self.timeline: Timeline | None = None
        # Whoever works on after the request's last byte closes the entry itself.
        self.is_held = False
        self.status: int | None = None
        self._started: Started | None = None
        self._usage: Usage | None = None
        self._reason: FinishReason | None = None
        self._error: tuple[str, int] | None = None
        self._is_cancelled = False
        self._is_interrupted = False
        self._ended_ns: int | None = None

    def asked(self, model: str, stream: bool) -> None:
        """Note what the client asked for."""
        self.model, self.stream = model, stream

    def see(self, event: Started | Finished) -> None:
        """Note that the work has begun, or is done."""
        if isinstance(event, Started):
            self._started = event
        else:
            self.complete(event.usage)
            self._reason = event.reason

    def complete(self, usage: Usage) -> None:
        """Note that all was made that was asked for."""
        self._usage = usage

    def fail(self, code: str, status: int) -> None:
        """Note an error by its code and its own status, whatever the client is sent in the end."""
        if self._error is None:
            self._error = code, status

    def cancel(self) -> None:
        """Note that the client has left."""
        if self._usage is None:
            self._is_cancelled = True

    def end(self, at_ns: int, *, is_interrupted: bool = False) -> None:
        """Note the end: the last byte is out, nobody is there to take it, or the server stops."""
        self._ended_ns = at_ns
        self._is_interrupted = is_interrupted

    def values(self) -> dict[str, object]:
        """Return the row's columns, but for those that the database or the log itself fills in."""
        origin, outcome = self.origin, self._outcome()
        error = self._error_sent() if outcome == "failed" else (None, None)
        return {
            "started_at": datetime.fromtimestamp(self.started_ns / 1e9, UTC),
            "request_id": _fit(origin.request_id),
            "trace_id": self.trace_id,
            "endpoint": _fit(origin.endpoint),
            "operation": OPERATIONS.get(origin.endpoint),
            "model": _fit_any(self.model),
            "backend": self.backend,
            "stream": self.stream,
            "status": self.status,
            "outcome": outcome,
            "error_code": error[0],
            "error_type": error[1],
            "duration_s": _between(self.started_ns, self._ended_ns),
            "client_address": _fit_any(origin.client_address, 64),
            "key_id": origin.key_id,
            "session_id": _fit_any(origin.session, 128),
            **self._work(),
        }

    def _outcome(self) -> Outcome:
        if self._ended_ns is None:
            return "running"
        if self._is_interrupted:
            return "interrupted"
        if self._error is not None:
            return "failed"
        if self._is_cancelled or self.status is None:
            return "cancelled"
        # Work that was begun and isn't finished is no answer, whatever status went out before.
        is_short = self._started is not None and self._usage is None
        return "failed" if is_short or self.status >= 400 else "completed"

    def _error_sent(self) -> tuple[str, str]:
        code, status = self._error or (MlxManagerError.code, MlxManagerError.status)
        if dialect_of(self.origin.endpoint, {}) == "anthropic":
            return code, anthropic_error_type(status, code)
        return code, error_type(status)

    def _work(self) -> dict[str, object]:
        timeline = self._started.timeline if self._started else self.timeline or Timeline()
        tokens = self._tokens(timeline)
        return {
            "response_model": _fit_any(self._started.model if self._started else None),
            "queue_s": _between(timeline.queued_ns, timeline.admitted_ns),
            "time_to_first_token_s": _between(self.started_ns, timeline.first_token_ns),
            "input_tokens": tokens[0],
            "cached_tokens": tokens[1],
            "output_tokens": tokens[2],
            "finish_reason": self._reason,
        }

    def _tokens(self, timeline: Timeline) -> tuple[int | None, int | None, int | None]:
        if (usage := self._usage) is not None:
            return usage.input_tokens, usage.cached_tokens, usage.output_tokens
        # What has been read of the prompt so far is known of one that runs, and of one that was cut off.
        is_being_read = self._started and (self._ended_ns is None or self._is_interrupted)
        if timeline.first_token_ns is None and not is_being_read:
            return None, None, None
        return timeline.prompt_tokens, timeline.cached_tokens, timeline.output_tokens


def _between(start_ns: int | None, end_ns: int | None) -> float | None:
    # The wall clock may be set back in between; no duration is negative.
    return None if start_ns is None or end_ns is None else max(end_ns - start_ns, 0) / 1e9


def _fit_any(text: str | None, length: int = 255) -> str | None:
    return None if text is None else _fit(text, length)


def _fit(text: str, length: int = 255) -> str:
    """Make what a client wrote fit a column: no lone surrogate, no NUL, not too long, and no key in it."""
    plain = (
        without_secrets(text, length)[:length].encode("utf-8", "replace").decode().replace("\0", "")
    )
    return clean_text(plain)[:length]
