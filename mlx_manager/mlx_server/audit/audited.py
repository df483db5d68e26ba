"""Watch a backend answer, and leave one row of the audit log for each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol

from mlx_manager.chat.backend import ChatBackend
from mlx_manager.chat.events import ChatEvent, Finished, Started, TextDelta, Timeline
from mlx_manager.chat.request import ChatRequest
from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.audit.tables import AuditRow, Outcome
from mlx_manager.observability.redaction import clean_text


class RowSink(Protocol):
    """Takes a finished row without waiting: the `AuditWriter`, or a list in a test."""

    def put(self, row: AuditRow) -> None:
        """Keep `row`."""
        ...


class AuditedBackend:
    """Answers as `backend` does; when an answer ends, however it does, its row goes to `sink`.

    `name` is what the log calls the backend. `trace_id` is asked as each stream starts. `clock_ns`
    is the clock that stamps the `Timeline`: nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        backend: ChatBackend,
        sink: RowSink,
        *,
        name: str,
        trace_id: Callable[[], str | None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._backend = backend
        self._sink = sink
        self._name = name
        self._trace_id = trace_id
        self._clock_ns = clock_ns

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`, watched."""
        entry = _Entry(self._sink, request, self._name, self._trace_id(), self._clock_ns)
        try:
            async with aclosing(self._backend.stream(request)) as events:
                async for event in events:
                    if not isinstance(event, TextDelta):
                        entry.see(event)
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            entry.close("cancelled")
            raise
        except BaseException as error:
            entry.close("failed", error)
            raise
        # Without a `Finished` there was no answer: whoever collects one fails for it.
        entry.close("failed")


class _Entry:
    """What is known of one request while it is answered. Closed once; later ends change nothing."""

    def __init__(
        self,
        sink: RowSink,
        request: ChatRequest,
        backend: str,
        trace_id: str | None,
        clock_ns: Callable[[], int],
    ) -> None:
        self._sink = sink
        self._request = request
        self._backend = backend
        self._trace_id = trace_id
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._is_closed = False

    def see(self, event: Started | Finished) -> None:
        if isinstance(event, Started):
            self._started = event
            return
        # Now, not when the generator ends: whoever has what it came for may leave it hanging here.
        self._finished = event
        self.close("completed")

    def close(self, outcome: Outcome, error: BaseException | None = None) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._sink.put(self._row(outcome, error))

    def _row(self, outcome: Outcome, error: BaseException | None) -> AuditRow:
        request, origin = self._request, self._request.origin
        row = AuditRow(
            started_at=datetime.fromtimestamp(self._started_ns / 1e9, UTC),
            request_id=_fit(origin.request_id),
            trace_id=self._trace_id,
            endpoint=_fit(origin.endpoint),
            operation=request.operation,
            model=_fit(request.model),
            backend=self._backend,
            stream=request.stream,
            status=self._status(outcome, error),
            outcome=outcome,
            error_code=_code(error) if outcome == "failed" else None,
            duration_s=_seconds(self._started_ns, self._clock_ns()),
            client_address=_fit(origin.client_address, 64) if origin.client_address else None,
        )
        self._add_work(row)
        return row

    def _add_work(self, row: AuditRow) -> None:
        if self._started is None:
            return
        row.response_model = _fit(self._started.model)
        timeline = self._started.timeline
        row.queue_s = _between(timeline.queued_ns, timeline.admitted_ns)
        row.time_to_first_token_s = _between(self._started_ns, timeline.first_token_ns)
        row.input_tokens, row.cached_tokens, row.output_tokens = self._tokens(timeline)
        row.finish_reason = self._finished.reason if self._finished else None

    def _tokens(self, timeline: Timeline) -> tuple[int, int, int]:
        if self._finished is None:
            return timeline.prompt_tokens, timeline.cached_tokens, timeline.output_tokens
        usage = self._finished.usage
        return usage.input_tokens, usage.cached_tokens, usage.output_tokens

    def _status(self, outcome: Outcome, error: BaseException | None) -> int | None:
        # A stream's status is sent with its first event and can't be taken back.
        if outcome == "completed" or (self._request.stream and self._started is not None):
            return 200
        if outcome == "cancelled":
            return None
        return error.status if isinstance(error, MlxManagerError) else MlxManagerError.status


def _code(error: BaseException | None) -> str:
    return error.code if isinstance(error, MlxManagerError) else MlxManagerError.code


def _seconds(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e9


def _between(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else _seconds(start_ns, end_ns)


def _fit(text: str, length: int = 255) -> str:
    """Make what a client wrote fit a column: no lone surrogate, no NUL, not too long, and no key in it."""
    plain = text[:length].encode("utf-8", "replace").decode().replace("\0", "")
    return clean_text(plain)[:length]
