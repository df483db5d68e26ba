"""Where finished, redacted spans go inside this process: a trace store, a test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from mlx_manager.observability.losses import Losses

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Attached:
    """A sink, what its losses are counted under, and whether its failing has been logged."""

    processor: SpanProcessor
    name: str
    is_failing: bool = False


class Sinks(SpanProcessor):
    """Hands each span to whoever is there now. Stands behind the `Redactor`.

    A sink that raises loses the span, which is counted; the request and the other sinks never notice. Spans of
    unsampled traces come, too: a sink that doesn't want them looks at `span.context.trace_flags`.
    """

    def __init__(self, losses: Losses) -> None:
        self._lock = threading.Lock()
        self._losses = losses
        self._attached: tuple[_Attached, ...] = ()

    @contextmanager
    def attached(self, processor: SpanProcessor, name: str) -> Iterator[None]:
        """Give spans to `processor` until the block ends, which doesn't shut it down."""
        sink = _Attached(processor, name)
        with self._lock:
            self._attached = (*self._attached, sink)
        try:
            yield
        finally:
            with self._lock:
                self._attached = tuple(kept for kept in self._attached if kept is not sink)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Tell all."""
        for sink in self._attached:
            try:
                sink.processor.on_start(span, parent_context)
            except Exception as error:  # noqa: BLE001 -- a sink may lose its own data and nothing else
                self._report(sink, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Tell all."""
        for sink in self._attached:
            try:
                sink.processor.on_end(span)
                sink.is_failing = False
            except Exception as error:  # noqa: BLE001 -- a sink may lose its own data and nothing else
                self._losses.add(sink.name)
                self._report(sink, error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush all; a shutdown is theirs who attached them."""
        flushed = [sink.processor.force_flush(timeout_millis) for sink in self._attached]
        return all(flushed)

    def _report(self, sink: _Attached, error: Exception) -> None:
        if not sink.is_failing:
            sink.is_failing = True
            logger.error(
                "telemetry sink failing: %(sink)s error=%(error)s",
                {"sink": sink.name, "error": type(error).__qualname__},
            )
