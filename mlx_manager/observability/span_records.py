"""Finished spans on their way to a store, as `SpanRecord`s that are made where there is time for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind as OtelKind
from opentelemetry.trace import StatusCode

from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import (
    Attributes,
    SpanEvent,
    SpanKind,
    SpanLink,
    SpanRecord,
    SpanStatus,
)

SPAN_TYPE = "logfire.span_type"
PENDING = "pending_span"
SERVICE_NAME = "service.name"

KINDS: dict[OtelKind, SpanKind] = {
    OtelKind.INTERNAL: "internal",
    OtelKind.SERVER: "server",
    OtelKind.CLIENT: "client",
    OtelKind.PRODUCER: "producer",
    OtelKind.CONSUMER: "consumer",
}
STATUSES: dict[StatusCode, SpanStatus] = {
    StatusCode.UNSET: "unset",
    StatusCode.OK: "ok",
    StatusCode.ERROR: "error",
}


class SpanRecorder(SpanProcessor):
    """Hands `take` a way to make each span's record. Stands behind the `Redactor`.

    A span often ends on the event loop, where there is no time to convert it: nothing changes it any more, so that
    can happen later, on the thread of whoever took it.
    """

    def __init__(self, take: Callable[[Callable[[], SpanRecord]], object]) -> None:
        self._take = take

    def on_end(self, span: ReadableSpan) -> None:
        """Hand it on, if it is one to keep."""
        if _is_kept(span):
            self._take(partial(to_record, span))


def _is_kept(span: ReadableSpan) -> bool:
    """Neither Logfire's notice of a span that has only begun, nor a statement outside of any request.

    Migrations and the audit log's batches would each be a trace of one span.
    """
    attributes = span.attributes or {}
    is_upkeep = span.parent is None and names.DB_SYSTEM in attributes
    return not is_upkeep and attributes.get(SPAN_TYPE) != PENDING


def to_record(span: ReadableSpan) -> SpanRecord:
    """The same span in plain values."""
    context, start_ns = span.get_span_context(), span.start_time or 0
    resource = span.resource.attributes
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}" if context else "",
        span_id=f"{context.span_id:016x}" if context else "",
        parent_span_id=f"{span.parent.span_id:016x}" if span.parent else None,
        name=span.name,
        kind=KINDS[span.kind],
        start_ns=start_ns,
        end_ns=max(start_ns, span.end_time or 0),
        status=STATUSES[span.status.status_code],
        service=str(resource.get(SERVICE_NAME, "")),
        scope=span.instrumentation_scope.name if span.instrumentation_scope else "",
        attributes=cast(Attributes, span.attributes or {}),
        resource=cast(Attributes, resource),
        events=tuple(
            SpanEvent(event.name, event.timestamp, cast(Attributes, event.attributes or {}))
            for event in span.events
        ),
        links=tuple(
            SpanLink(
                f"{link.context.trace_id:032x}",
                f"{link.context.span_id:016x}",
                cast(Attributes, link.attributes or {}),
            )
            for link in span.links
        ),
    )
