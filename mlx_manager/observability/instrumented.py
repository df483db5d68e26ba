"""`InstrumentedBackend`: one span per chat, its phases after the fact, its metrics at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from mlx_manager.chat.backend import ChatBackend
from mlx_manager.chat.events import ChatEvent, Finished, Started
from mlx_manager.chat.request import ChatRequest
from mlx_manager.observability.afterwards import Later, at_once
from mlx_manager.observability.chat_span import ChatSpan
from mlx_manager.observability.finished_spans import TracerWriter
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.metrics import ChatMetrics
from mlx_manager.observability.setup import span_writer


class InstrumentedBackend:
    """Watches another backend. Costs a comparison per event; spans and metrics are made once, after the end.

    `provider` is the GenAI provider name (`mlx` for the local engine), `name` says which backend it is, `later` when
    the books of an answer that has ended are closed.
    """

    def __init__(
        self,
        backend: ChatBackend,
        *,
        provider: str = "mlx",
        name: str = "local",
        tracer: Tracer | None = None,
        metrics: ChatMetrics | None = None,
        later: Later = at_once,
    ) -> None:
        self._backend = backend
        self._provider = provider
        self._name = name
        self._tracer = tracer or trace.get_tracer(SCOPE)
        self._writer = TracerWriter(tracer) if tracer else span_writer()
        self._metrics = metrics or ChatMetrics()
        self._later = later

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`; its span is a child of the span that is current now, not when it is first read."""
        return self._watch(request, otel_context.get_current(), time.time_ns())

    async def _watch(
        self, request: ChatRequest, parent: Context, arrived_ns: int
    ) -> AsyncGenerator[ChatEvent, None]:
        span = ChatSpan(
            self._tracer,
            self._writer,
            request,
            self._provider,
            self._name,
            parent,
            arrived_ns,
        )
        try:
            async with aclosing(self._backend.stream(replace(request, trace=span.trace))) as events:
                # What the backend does before its first event (spans, logs, SQL) belongs under the chat. Attached
                # around one await only: across a `yield` it would leak into whoever reads the stream.
                with trace.use_span(
                    span.span, record_exception=False, set_status_on_exception=False
                ):
                    event = await anext(events, None)
                awaits_delta = True
                while event is not None:
                    if isinstance(event, (Started, Finished)):
                        self._note(span, event)
                    elif awaits_delta:
                        awaits_delta = False
                        span.first_delta()
                    yield event
                    event = await anext(events, None)
        except (GeneratorExit, asyncio.CancelledError):
            span.cancel()
            raise
        except BaseException as error:
            span.fail(error)
            raise
        finally:
            span.end(self._metrics, self._later)

    def _note(self, span: ChatSpan, event: ChatEvent) -> None:
        span.note(event)
        if isinstance(event, Finished):
            # Not at the end of the generator: whoever has the last event may never ask for another.
            span.end(self._metrics, self._later)
