"""Where finished, redacted spans go besides Logfire and the console: a trace store, a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor


class Sinks(SpanProcessor):
    """Hands each span to whoever is there now. Stands behind the `Redactor`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processors: tuple[SpanProcessor, ...] = ()

    @contextmanager
    def attached(self, processor: SpanProcessor) -> Iterator[None]:
        """Give spans to `processor` until the block ends, which doesn't shut it down."""
        with self._lock:
            self._processors = (*self._processors, processor)
        try:
            yield
        finally:
            with self._lock:
                self._processors = tuple(kept for kept in self._processors if kept is not processor)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell all."""
        for processor in self._processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell all."""
        for processor in self._processors:
            processor.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush all; a shutdown is theirs who attached them."""
        flushed = [processor.force_flush(timeout_millis) for processor in self._processors]
        return all(flushed)
